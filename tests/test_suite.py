"""The tests themselves, run by several workers."""

import gc
from pathlib import Path

import pytest

from tests import forks


class Collected:
    """Garbage in a cycle, which leaves a file when it is collected."""

    def __init__(self, file: Path) -> None:
        self.file, self.itself = file, self

    def __del__(self) -> None:
        self.file.touch()


def test_a_fork_does_not_collect_what_was_garbage_before(tmp_path: Path) -> None:
    """Or it would wait for the threads of process groups that earlier tests have left, and hang or die."""

    def work() -> None:
        gc.collect()
        assert gc.isenabled()

    gc.collect()
    Collected(tmp_path / "collected")
    process = forks.start(work)
    process.join()
    assert process.exitcode == 0
    assert not (tmp_path / "collected").exists()
    gc.collect()
    assert (tmp_path / "collected").exists()


@pytest.mark.xdist_group("suite")
def test_groups_of_tests_stay_in_one_worker(request: pytest.FixtureRequest) -> None:
    """Or what shares a cluster or a long run would start it once in each: slower, and at the same time."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@suite"), "these versions of pytest and pytest-xdist do not fit together"
