"""Work trees of commits that are compared: there while they are used, gone afterwards, also after a SIGKILL."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launch.checkouts import checkouts, remove_abandoned
from tests.launches import ROOT, environment

KILLED = """
import os, signal
from launch.checkouts import checkouts
with checkouts(["HEAD", "HEAD"]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def work_trees() -> str:
    return subprocess.check_output(["git", "-C", str(ROOT), "worktree", "list"], text=True)


def test_what_a_killed_comparison_left_is_removed_and_what_is_in_use_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with checkouts(["HEAD", "HEAD"]) as trees:
        killed = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=environment(tmp_path), check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 2
        assert work_trees().count(str(tmp_path)) == 4
        remove_abandoned()
        assert os.listdir(tmp_path) == [trees[0].parent.name]
        assert work_trees().count(str(tmp_path)) == 2
        assert all((tree / "pyproject.toml").is_file() for tree in trees)
    assert os.listdir(tmp_path) == []
    assert str(tmp_path) not in work_trees()
