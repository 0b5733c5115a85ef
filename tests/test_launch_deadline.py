"""When a job has to stop: by its end, by a file, and what a real SLURM shows of a scancel and of a requeue."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch import deadline
from launch.deadline import Deadline, end_time_s, how_it_ends, job_cancelled, job_facts
from tests.slurm_cluster import Cluster
from tests.waiting import wait_until

pytestmark = pytest.mark.xdist_group("slurm")


class Stops:
    """The reasons that came, and a way to wait for one."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.times_s: list[float] = []
        self.came = threading.Event()

    def __call__(self, reason: str) -> None:
        self.times_s.append(time.time())
        self.reasons.append(reason)
        self.came.set()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert "deadline" not in [thread.name for thread in threading.enumerate()]


def test_the_margin_before_the_end_calls_once() -> None:
    stops = Stops()
    end_s = time.time() + 101
    with Deadline(stops, margin_s=100, end_time=lambda: end_s):
        assert stops.came.wait(20)
        time.sleep(0.7)
    (reason,) = stops.reasons
    assert 80 < end_s - stops.times_s[0] <= 100
    assert reason.startswith("the job's time ends at ")
    assert reason.endswith(tuple(f"in {left_s} s" for left_s in range(80, 101)))
    assert f"{time.localtime(end_s).tm_hour:02}:{time.localtime(end_s).tm_min:02}:" in reason


def test_the_stop_file_calls(tmp_path: Path) -> None:
    stops = Stops()
    with Deadline(stops, margin_s=100, stop_file=tmp_path / "stop", end_time=lambda: None):
        assert not stops.came.wait(0.7)
        (tmp_path / "stop").touch()
        assert stops.came.wait(20)
    assert stops.reasons == [f"the file {tmp_path / 'stop'} asks for it"]


def test_nothing_calls_after_the_close_and_without_an_end(tmp_path: Path) -> None:
    stops = Stops()
    with Deadline(stops, margin_s=100, stop_file=tmp_path / "stop") as watch:
        time.sleep(0.6)
    (tmp_path / "stop").touch()
    time.sleep(0.7)
    assert (stops.reasons, watch.failure) == ([], None)


def test_slurm_is_asked_once_a_minute_and_an_end_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    stops = Stops()
    answers = iter([time.time() + 1000, None, time.time() + 50])

    def end_time() -> float | None:
        asked.append(time.monotonic())
        return next(answers)

    with Deadline(Stops(), margin_s=100, end_time=lambda: asked.append(0.0)):
        time.sleep(1.2)
    assert asked == [0.0]
    asked.clear()
    monkeypatch.setattr(deadline, "ASK_EVERY_S", 0.7)
    with Deadline(stops, margin_s=100, end_time=end_time):
        assert stops.came.wait(30)
    assert len(asked) == 3


def test_an_exception_of_the_callback_is_printed_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stop").touch()

    def fail(reason: str) -> None:
        raise RuntimeError(reason)

    with Deadline(fail, margin_s=1, stop_file=tmp_path / "stop") as watch:
        wait_until(lambda: watch.failure is not None)
    assert "asks for it" in str(watch.failure)
    assert "RuntimeError" in capfd.readouterr().err
    with pytest.raises(ValueError, match="expected a margin of 0 s or more"):
        Deadline(fail, margin_s=-1)


@pytest.mark.parametrize("job_id", ["", "1; touch x", "--all", "1_[1-3]", "\u0661"])
def test_what_is_no_job_id_is_refused(job_id: str) -> None:
    with pytest.raises(ValueError, match="expected a job id"):
        job_facts(job_id)


def test_without_slurm_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert (job_facts("1"), end_time_s("1"), how_it_ends("1"), job_cancelled("1")) == (None, None, None, None)


@pytest.fixture
def submit(slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Queues a job that tells, when it gets SIGTERM, what it sees of itself, and stays until it is killed."""
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    code = (
        "import os, signal, sys, time; from launch.deadline import *\n"
        "job, before = os.environ['SLURM_JOB_ID'], int(os.environ.get('SLURM_RESTART_COUNT', 0))\n"
        "seen = open(f'{sys.argv[1]}/seen', 'a', buffering=1)\n"
        "tell = lambda *_: print(how_it_ends(job, before), job_cancelled(job, before), file=seen)\n"
        "signal.signal(signal.SIGTERM, tell)\n"
        "tell()\n"
        "while True: time.sleep(0.1)\n"
    )
    (tmp_path / "job.py").write_text(code)
    root = Path(__file__).resolve().parent.parent
    script = f"#!/bin/bash\ncd {root} && PYTHONPATH=. exec {sys.executable} {tmp_path}/job.py {tmp_path}\n"
    (tmp_path / "job.sh").write_text(script)

    def queue(*options: str) -> str:
        name = "--job-name=a EndTime=2001-01-01T00:00:00 JobState=CANCELLED"  # It must not be believed.
        words = ["sbatch", "--parsable", name, f"--output={tmp_path}/out", *options, str(tmp_path / "job.sh")]
        job_id = slurm_cluster.command(*words).strip()
        wait_for_lines(tmp_path / "seen", 1)
        return job_id

    return queue


def wait_for_lines(path: Path, count: int, timeout_s: float = 20) -> list[str]:
    deadline_s = time.monotonic() + timeout_s
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline_s, f"{path}: {path.read_text() if path.exists() else 'nothing'}"
        time.sleep(0.05)
    return path.read_text().splitlines()


def test_a_job_knows_its_end_and_sees_its_own_scancel(
    slurm_cluster: Cluster, submit: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")  # A person's taste; it must not matter.
    start_s = time.time()
    job_id = submit("--time=3")
    end_s = end_time_s(job_id)
    assert end_s is not None
    assert abs(end_s - start_s - 180) < 20
    assert (how_it_ends(job_id), job_cancelled(job_id)) == ("not yet", False)
    slurm_cluster.command("scontrol", "update", f"JobId={job_id}", "TimeLimit=5")
    moved_s = end_time_s(job_id)
    assert moved_s is not None
    assert round(moved_s - end_s) == 120
    slurm_cluster.command("scancel", job_id)
    assert wait_for_lines(tmp_path / "seen", 2) == ["not yet False", "cancelled True"]
    slurm_cluster.wait_for(job_id, timeout_s=30)
    assert job_cancelled(job_id) is True
    assert job_facts("999999") is None


def test_a_job_sees_that_it_was_requeued_and_not_cancelled(
    slurm_cluster: Cluster, submit: Callable[..., str], tmp_path: Path
) -> None:
    job_id = submit("--time=3", "--requeue")
    slurm_cluster.command("scontrol", "requeue", job_id)
    assert wait_for_lines(tmp_path / "seen", 2) == ["not yet False", "requeued False"]
    facts = job_facts(job_id)
    assert facts is not None
    assert facts.restarts == 1
    slurm_cluster.command("scancel", job_id)


def test_a_job_sees_that_its_time_is_over(slurm_cluster: Cluster, submit: Callable[..., str], tmp_path: Path) -> None:
    job_id = submit("--time=3")
    # SLURM looks for jobs whose time is over twice a minute.
    slurm_cluster.command("scontrol", "update", f"JobId={job_id}", "EndTime=now")
    assert wait_for_lines(tmp_path / "seen", 2, timeout_s=60) == ["not yet False", "time limit False"]
    assert slurm_cluster.wait_for(job_id, timeout_s=30)["JobState"] == "TIMEOUT"
    assert how_it_ends(job_id) == "time limit"
