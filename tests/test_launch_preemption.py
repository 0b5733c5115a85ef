"""What survives on a real cluster: a preemption, the time limit, a cancelled run, and a failure that comes again."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launch import run_folder
from launch.exit_codes import STOPPED
from tests.slurm_cluster import Cluster
from tests.slurm_jobs import Run, ringmark, submit

pytestmark = pytest.mark.xdist_group("slurm")
ROOT = Path(__file__).resolve().parent.parent
SLOW = """
import time
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        if self.training:
            time.sleep(0.04)
        return super().forward(x)

def net(shape, classes):
    return Net(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, classes))
"""
EPOCHS = "20"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "mine.py").write_text(SLOW)
    return folder


def training(place: Path, out: Path) -> list[str]:
    model = ["--model", f"{place / 'mine.py'}:net", "--data", "digits", "--device", "cpu", "--sync-bn"]
    return ["train", *model, "--epochs", EPOCHS, "--lr", "0.1", "--out", str(out)]


@pytest.fixture(scope="module")
def undisturbed(slurm_cluster: Cluster, place: Path) -> dict[str, torch.Tensor]:
    return golden(slurm_cluster, place)


def golden(cluster: Cluster, place: Path) -> dict[str, torch.Tensor]:
    """Weights of the same training by two ranks of this machine."""
    done = ringmark(cluster, "train", "--nproc-per-node", "2", *training(place, place / "golden")[1:], cwd=place)
    assert done.returncode == 0, done.stderr
    return weights(place / "golden")


def weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(out / "model.pt", weights_only=True)
    return found


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


def begun(out: Path) -> bool:
    """Whether a checkpoint has been committed."""
    return any(path.name[5:].isdigit() for path in (out / "checkpoints").glob("step-*"))


def start(cluster: Cluster, place: Path, folder: Path, *options: str) -> tuple[Run, Path]:
    """A training of two ranks on one node that has written its first checkpoint -> the run, and its output."""
    out = folder / "out"
    run = submit(
        cluster, folder, "--nodes", "1", "--nproc-per-node", "2", *options, "--",
        *training(place, out), *(["--resume", "auto"] if "never" not in options else []),
    )  # fmt: skip
    wait_for(lambda: begun(out), "the first checkpoint")
    return run, out


def test_a_preempted_run_goes_on_and_ends_as_if_nothing_had_happened(
    slurm_cluster: Cluster, place: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run, out = start(slurm_cluster, place, tmp_path, "--requeue")
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/bash\nsleep 1\n")
    more = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", str(urgent))
    slurm_cluster.command("sbatch", "--parsable", *more)
    run.wait_until_over(150)
    assert (run.folder / run_folder.DONE).exists(), run.output
    first, last = run.attempts
    assert (first.code, last.code) == (STOPPED, 0), run.output
    assert first.step_after is not None
    assert 0 < first.step_after < int(EPOCHS) * 23
    assert all(torch.equal(weights(out)[name], tensor) for name, tensor in undisturbed.items())


def test_a_run_longer_than_its_jobs_time_goes_on_in_another(
    slurm_cluster: Cluster, place: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    site = 'time = "00:01:00"\ncpus_per_task = 2\nstop_margin_s = 48\n'  # so the first job has about 12 s
    (tmp_path / "site.toml").write_text(site)
    run, out = start(slurm_cluster, place, tmp_path, "--follow")
    wait_for(lambda: len(run.job_ids) > 1, "the follow-up job")
    slurm_cluster.command("scontrol", "update", f"JobId={run.job_ids[1]}", "TimeLimit=5")
    wait_for(lambda: (run.folder / run_folder.DONE).exists(), "the run to be done", 200)
    codes = [attempt.code for attempt in run.attempts]
    assert len(codes) == len(run.job_ids) > 1, run.output
    assert codes == [*[STOPPED] * (len(codes) - 1), 0], run.output
    assert "the job's time ends at" in run.output
    assert all(torch.equal(weights(out)[name], tensor) for name, tensor in undisturbed.items())


def test_a_cancelled_run_stays_cancelled(slurm_cluster: Cluster, place: Path, tmp_path: Path) -> None:
    run, _ = start(slurm_cluster, place, tmp_path, "--requeue")
    slurm_cluster.command("scancel", run.job_ids[0])
    job = run.wait()
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), run.output
    assert len(run.job_ids) == 1
    (attempt,) = run.attempts
    assert attempt.code == STOPPED, run.output
    assert "stopped by a person" in run.output


def test_the_stop_file_saves_and_ends_a_run(slurm_cluster: Cluster, place: Path, tmp_path: Path) -> None:
    run, _ = start(slurm_cluster, place, tmp_path, "--follow")
    cancelled = ringmark(slurm_cluster, "cancel", "--wait", "60", str(run.folder))
    assert cancelled.returncode == 0, cancelled.stderr
    run.wait()
    (attempt,) = run.attempts
    assert (attempt.code, len(run.job_ids)) == (STOPPED, 1), run.output
    again = ringmark(slurm_cluster, "resubmit", str(run.folder))
    assert again.returncode == 0, again.stderr
    assert run.wait(150)["JobState"] == "COMPLETED", run.output
    assert (run.folder / run_folder.DONE).exists()


def test_a_failure_that_comes_again_is_not_tried_again(slurm_cluster: Cluster, tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "launched.py")
    run = submit(
        slurm_cluster, tmp_path, "--nodes", "1", "--nproc-per-node", "2", "--requeue", "--", "run", script, "raise"
    )
    job = run.wait()
    assert (job["JobState"], job["Restarts"], len(run.attempts)) == ("FAILED", "0", 1), run.output
    assert "which would happen again" in run.output
