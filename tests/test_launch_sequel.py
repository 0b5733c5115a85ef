"""What a run's folder keeps of an attempt, and what is read from it for the next one; all without SLURM."""

import time
from pathlib import Path
from typing import Any

import pytest

from ddp import checkpoint_files
from launch import attempts, run_folder
from launch.deadline import Ending
from launch.events import LastWords, RankEnd
from launch.job import Job
from launch.private_files import read_json, write_json
from launch.sequel import BEGUN, STOPPING, margin_s, missing_attempts, output_of, record, take_up
from launch.spec import Spec
from launch.verdict import Verdict, judge

JOB = Job(job_id="7", nodes=("n1", "n2"), cpus_per_task=None, restarts=0)
TRACEBACK = ("Traceback (most recent call last):", "step (train.py:12)", "ValueError: loss 3.5")


def spec(run: Path, *arguments: str, **more: Any) -> Spec:
    return Spec(
        **{"name": "x", "script": "s.py", "arguments": arguments, "run_dir": str(run), "work_dir": str(run)} | more
    )


def save(run: Path, step: int) -> None:
    """A committed checkpoint in the folder `o` of a run."""
    folder = checkpoint_files.step_path(run / "o" / attempts.CHECKPOINTS, step)
    folder.mkdir(parents=True)
    (folder / attempts.MANIFEST).touch()


def end(rank: int, code: int, words: LastWords | None = None, time_s: float = 101.0) -> RankEnd:
    finished = code == 0
    return RankEnd(
        rank=rank, local_rank=rank, host="n1", pid=9, time_s=time_s, code=code, finished=finished, words=words
    )


def failed() -> Verdict:
    """Rank 1 fails with an exception, and rank 0 because of it."""
    words = LastWords(time_s=101.0, type="ValueError", message="loss 3.5", traceback=TRACEBACK)
    later = LastWords(time_s=109.0, type="KeyError", message="k", traceback=())
    return judge([end(0, 1, later, 109.0), end(1, 1, words)], [], started_s=100.0, world_size=2)


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("--out", "o"), "/work/o"),
        (("--lr", "0.1", "--out=a=b", "--out", "later"), "/work/a=b"),
        (("--out", "/elsewhere/o"), "/elsewhere/o"),
        (("--out",), None),
        (("--output", "o", "out", "--out-of=o"), None),
        ((), None),
    ],
)
def test_the_output_is_where_the_arguments_say(words: tuple[str, ...], place: str | None) -> None:
    assert output_of(spec(Path("/run"), *words, work_dir="/work")) == (None if place is None else Path(place))


@pytest.mark.parametrize(("took_s", "expected_s"), [([], 120), ([3, 1], 30), ([16, 40, 20], 80), ([None], 120)])
def test_the_margin_is_twice_what_the_longest_stop_took(
    tmp_path: Path, took_s: list[float | None], expected_s: float
) -> None:
    for number, each in enumerate(took_s):
        folder = tmp_path / "attempts" / str(number)
        folder.mkdir(parents=True)
        write_json(folder / STOPPING, {} if each is None else {"took_s": each})
    (tmp_path / "attempts" / str(len(took_s))).mkdir(parents=True)  # one that was not asked to stop
    assert margin_s(tmp_path, 120) == expected_s


def test_an_attempt_that_begins_notes_where_it_starts_from(tmp_path: Path) -> None:
    save(tmp_path, 40)
    before_s = time.time()
    note = take_up(spec(tmp_path, "--out", "o", resumable=True), JOB, 3)
    assert read_json(tmp_path / "attempts" / "3" / BEGUN) == dict(note) | {"hosts": ["n1", "n2"]}
    assert (note["job_id"], note["step"]) == ("7", 40)
    assert 0 <= float(str(note["started_s"])) - before_s < 60
    assert take_up(spec(tmp_path, "--out", "o"), JOB, 4)["step"] is None  # what a script that cannot go on left there


def test_of_an_attempt_without_an_end_only_what_was_noted_is_known(tmp_path: Path) -> None:
    run = spec(tmp_path, "--out", "o", resumable=True)
    note = take_up(run, JOB, 0)
    record(run, JOB, failed(), None, note)
    begun = take_up(run, JOB, 1)
    (tmp_path / "attempts" / "2").mkdir()  # it got no further than its folder
    missing_attempts(tmp_path)
    (first, second, third), torn = attempts.read(tmp_path)
    assert torn == 0
    assert (first.number, first.cause) == (0, "exception")
    assert (second.number, second.job_id, second.hosts, second.step_before) == (1, "7", ("n1", "n2"), 0)
    assert second.started_s == begun["started_s"]
    assert (third.number, third.job_id, third.hosts, third.started_s, third.step_before) == (2, None, (), None, None)
    for each in (second, third):
        assert (each.code, each.cause, each.ended_s, each.step_after) == (9, "lost node", None, None)
    assert second.signature == third.signature  # the same failure, if it comes again
    missing_attempts(tmp_path)
    assert len(attempts.read(tmp_path)[0]) == 3


def test_the_culprits_end_and_the_progress_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = spec(tmp_path, "--out", "o", resumable=True)
    save(tmp_path, 40)
    note = take_up(run, JOB, 0)
    save(tmp_path, 50)
    before_s = time.time()
    assert record(run, JOB, failed(), "not yet", note) == 1
    ((found,), _) = attempts.read(tmp_path)
    assert (found.number, found.job_id, found.hosts, found.code, found.cause) == (0, "7", ("n1", "n2"), 1, "exception")
    assert (found.started_s, found.step_before, found.step_after, found.exception) == (100.0, 40, 50, "ValueError")
    assert found.signature == "exception ValueError loss # step (train.py:12)"
    assert found.ended_s is not None
    assert 0 <= found.ended_s - before_s < 60
    assert not run_folder.is_done(tmp_path)
    assert "attempt 0 ended with exit code 1 (exception: ValueError)" in capsys.readouterr().out


def test_a_run_that_is_done_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = spec(tmp_path)
    done = judge([end(0, 0), end(1, 0)], [], started_s=100.0, world_size=2)
    assert record(run, JOB, done, None, take_up(run, JOB, 0)) == 0
    assert run_folder.is_done(tmp_path)
    ((found,), _) = attempts.read(tmp_path)
    assert (found.code, found.cause, found.exception, found.step_before, found.step_after) == (
        0,
        "done",
        None,
        None,
        None,
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("ending", "stop_file", "said"),
    [
        ("not yet", False, "the next attempt could not be queued: expected SLURM's scontrol on the PATH, found none"),
        ("cancelled", False, "the run was stopped by a person"),
        ("not yet", True, "the run was stopped by a person"),
        ("requeued", False, "SLURM has put the job back into the queue itself"),
    ],
)
def test_what_follows_is_said_also_if_it_fails(
    tmp_path: Path,
    ending: Ending,
    stop_file: bool,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    if stop_file:
        run_folder.ask_to_stop(tmp_path, "enough")
    run = spec(tmp_path, go_on="requeue")
    stopped = judge([end(0, 75), end(1, 75)], [], started_s=100.0, world_size=2)
    assert record(run, JOB, stopped, ending, take_up(run, JOB, 0)) == 75
    out = capsys.readouterr().out
    assert said in out
    assert ("could not be queued" in out) == ("could not be queued" in said)
