"""Watching, reading, ending and repeating runs on a real cluster, where a small program plays launch.batch."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import run_folder, slurm_text, spec
from launch.argv import UsageError
from launch.cancel import cancel
from launch.logs import logs
from launch.resubmit import resubmit
from launch.status import status
from launch.submit import submit
from tests import batch_recorder
from tests.slurm_cluster import Cluster

pytestmark = pytest.mark.xdist_group("slurm")
ROOT = Path(__file__).resolve().parent.parent
JOB_TIMEOUT_S = 30
FOLLOW = "import sys; from launch.logs import logs; sys.exit(logs(sys.argv[1:]))"


@pytest.fixture
def place(slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a site `here.toml` and a script, on the cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("SQUEUE_FORMAT", "%j")  # a person's own format must not matter
    (tmp_path / "s.py").write_text("")
    python = batch_recorder.install(tmp_path, ROOT)
    (tmp_path / "here.toml").write_text(f"python = {json.dumps(python)}\n")
    return tmp_path


def no_worker(words: Sequence[str], ranks: int) -> tuple[str, ...]:
    raise UsageError("expected run")


def start(*arguments: str, options: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """Submit the recorder -> its run folder and its jobs."""
    before = set(Path("runs").glob("*"))
    words = ["--site", "here.toml", "--run-dir", "runs", *options, "--", "run", "s.py", *arguments]
    assert submit(words, no_worker) == 0
    (run,) = set(Path("runs").glob("*")) - before
    return run, [job.job_id for job in run_folder.jobs(run)]


def wait_for_attempt(run: Path, number: int = 0) -> None:
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while not (run / "attempts" / str(number) / "logs" / "rank-1-n2.log").exists():
        assert time.monotonic() < deadline, f"attempt {number} has not started"
        time.sleep(0.05)


def shown(capfd: pytest.CaptureFixture[str], run: Path) -> str:
    capfd.readouterr()
    assert status([str(run)]) == 0
    return capfd.readouterr().out


def test_a_run_is_watched_stopped_and_taken_up_again(
    place: Path, slurm_cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    run, (first,) = start("wait", options=["--name", "long", "--requeue", "--nodes", "2"])
    out = capfd.readouterr().out
    assert f"status  ringmark status {run}\n" in out
    wait_for_attempt(run)

    text = shown(capfd, run)
    assert "state    running\n" in text
    assert f"job      {first} RUNNING\n" in text
    assert "nodes    2 n[1-2]\n" in text
    assert "attempt  1 of at most 100\n" in text

    with pytest.raises(ValueError, match=f"got {first} in the queue; ringmark cancel"):
        resubmit([str(run)])
    assert cancel([str(run), "--wait", "20"]) == 0
    assert capfd.readouterr().out.endswith("stopped by itself\n")
    assert "recorder: stopped because cancelled by root on " in next(run.glob("job-*.out")).read_text()
    # The recorder ended with its own code, so nobody had to end it.
    assert slurm_cluster.wait_for(first, JOB_TIMEOUT_S)["ExitCode"] == "75:0"
    assert "stop     cancelled by root on " in shown(capfd, run)

    assert resubmit([str(run), "--exclude", "n9"]) == 1  # SLURM knows no such node
    assert "ringmark resubmit: sbatch refused: " in capfd.readouterr().err
    assert (run / "stop").exists(), "a run that was not queued again has not been asked to go on"
    assert resubmit([str(run)]) == 0
    second = run_folder.jobs(run)[-1].job_id
    assert not (run / "stop").exists()
    wait_for_attempt(run, 1)
    assert f"job      {second} RUNNING\n" in shown(capfd, run)

    assert cancel([str(run), "--now"]) == 0
    # By SLURM, unless the recorder has seen the file before that; not by running out of its minute, in any case.
    assert slurm_cluster.wait_for(second, JOB_TIMEOUT_S)["JobState"] in ("CANCELLED", "FAILED")
    assert "attempt  2 of at most 100\n" in shown(capfd, run)


def test_logs_are_followed_over_the_jobs_of_a_run_and_cannot_command_a_terminal(place: Path) -> None:
    run, (first, second) = start("wait", options=["--chain", "2"])
    follower = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, "-f", str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    wait_for_attempt(run)
    run_folder.ask_to_stop(run, "the test says so")
    out, _ = follower.communicate(timeout=JOB_TIMEOUT_S)

    assert follower.returncode == 0
    assert out.splitlines() == [
        f"recorder: attempt 0 of job {first} bold",
        "recorder: stopped because the test says so",
        f"recorder: attempt 1 of job {second} bold",
        "recorder: stopped because the test says so",
    ]


def test_the_log_of_one_rank_and_of_the_one_that_failed_first(
    place: Path, slurm_cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    run, (job_id,) = start("fail", "9", options=["--name", "bad"])
    slurm_cluster.wait_for(job_id, JOB_TIMEOUT_S)
    capfd.readouterr()
    clean = ["rank 1 attempt 0: first red line", "rank 1 attempt 0: tab\there ", "rank 1 attempt 0: last"]

    assert logs([str(run), "--first-failed"]) == 0
    assert capfd.readouterr().out.splitlines() == clean
    assert logs(["--rank", "1", "--raw", str(run)]) == 0
    assert "\x1b[31mred" in capfd.readouterr().out
    assert logs([str(run), "--rank", "0"]) == 0
    assert capfd.readouterr().out.startswith("rank 0 attempt 0: first red")
    with pytest.raises(ValueError, match=r"expected log of rank 7 in .*, got none yet"):
        logs([str(run), "--rank", "7"])

    text = shown(capfd, run)
    assert "state    signal\n" in text
    assert "with code 137:\n  rank 1 (n2" in text


def test_nodes_that_verdicts_name_are_kept_away_from(
    place: Path, slurm_cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    run, (first,) = start("fail", "9")
    slurm_cluster.wait_for(first, JOB_TIMEOUT_S)
    (run / "doctor.json").write_text(json.dumps({"exclude": "n2"}))

    assert resubmit([str(run), "--exclude-bad"]) == 0

    assert " without n2; " in capfd.readouterr().out
    job = run_folder.jobs(run)[-1]
    assert "--exclude=n2" in job.options
    assert slurm_cluster.wait_for(job.job_id, JOB_TIMEOUT_S)["NodeList"] == "n1"
    assert spec.read(run / "spec.json").exclude == ("n2",)


def test_a_folder_of_runs_is_a_table_with_the_newest_first(
    place: Path, slurm_cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = place / "sweep.txt"
    sweep.write_text('["end", "0"]\n["end", "3"]\n')
    run, (job_id,) = start(options=["--name", "sweep", "--array", str(sweep)])
    time.sleep(1.1)  # the stamps in the names are of whole seconds
    done, (last,) = start("end", "0", options=["--name", "single"])
    for each in (f"{job_id}_0", f"{job_id}_1", last):
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while not slurm_text.queue([each])[each].over:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    capfd.readouterr()
    assert status(["runs"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "job", "state", "nodes", "elapsed", "attempt", "step", "how", "it", "ended"]
    assert lines[1].startswith(done.name)
    assert " done " in lines[1]
    assert lines[2].startswith(run.name)
    assert "1 done, 1 failed" in lines[2]

    tasks = shown(capfd, run).splitlines()[-2:]
    assert [line.split()[:3] for line in tasks] == [["0", f"{job_id}_0", "done"], ["1", f"{job_id}_1", "failed"]]
    assert f"job      {job_id}_1 FAILED" in shown(capfd, run / "task-1")
    with pytest.raises(ValueError, match="expected a run with work left"):
        resubmit([str(done)])


def test_jobs_that_only_wait_leave_the_queue_at_once(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, (first, second, third) = start("linger", options=["--chain", "3"])
    wait_for_attempt(run)
    assert f"waiting  {second}, {third}\n" in shown(capfd, run)

    assert cancel([str(run), "--wait", "20"]) == 0

    states = {job_id: entry.state for job_id, entry in slurm_text.queue([first, second, third]).items()}
    assert states == {first: "FAILED", second: "CANCELLED", third: "CANCELLED"}


def test_what_is_no_run_is_said_so(place: Path) -> None:
    for command in (logs, cancel, resubmit):
        with pytest.raises(ValueError, match="expected the folder of a run"):
            command([str(place)])
        with pytest.raises(UsageError, match="got none"):
            command([])
    with pytest.raises(ValueError, match="expected the folder of a run"):
        status(["nowhere"])


def test_a_job_that_slurm_has_forgotten_is_no_error(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_folder.create(place / "runs", "old")
    run_folder.add_job(run, run_folder.Job(job_id="987654", time_s=0.0, options=()))

    text = shown(capfd, run)
    assert "state    unknown\n" in text
    assert "job      987654 (SLURM has forgotten it)\n" in text
    assert cancel([str(run)]) == 0
    assert "nothing of this run is in the queue" in capfd.readouterr().out
