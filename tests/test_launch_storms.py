"""A few launches of each storm; `python -m tests.launch_storms NAME --count N` runs as many as one likes."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch_storms import STORMS, storm
from tests.test_launch_resume import outcome, start, wait_for_checkpoints, workers_of

pytestmark = pytest.mark.xdist_group("launches")
COUNTS = {"kill9": 3, "ctrlc": 3, "daemon": 2, "stop": 2}
"""Where the second trial is of another kind than the first, or another moment counts; else one."""


@pytest.mark.parametrize("name", STORMS)
def test_a_few_launches_of_a_storm(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    trials = storm(name, COUNTS.get(name, 1), seed=os.getpid())
    assert all(trial.good for trial in trials), capfd.readouterr().out


def test_a_restart_goes_on_from_the_last_checkpoint_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    def end(process: subprocess.Popen[str]) -> str:
        err = process.communicate(timeout=100)[1]
        assert process.returncode == 0, err
        return err

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    end(start(undisturbed))
    process = start(killed, "--max-restarts", "2")
    wait_for_checkpoints(killed, 4, process)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    err = end(process)
    assert "restart 1: all ranks start again" in err
    assert "resumed from" in err
    (epochs, weights), (others, their_weights) = outcome(undisturbed), outcome(killed)
    assert epochs == others
    assert all(weights[name].equal(tensor) for name, tensor in their_weights.items())
