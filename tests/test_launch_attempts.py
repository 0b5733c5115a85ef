"""Whether another attempt follows, and the file that remembers them."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ddp import checkpoint_files
from ddp.resume import FOLDER
from launch.attempts import (
    CHECKPOINT,
    CHECKPOINTS,
    FILE_NAME,
    MANIFEST,
    Attempt,
    Decision,
    append,
    decide,
    last_step,
    read,
    signature,
)


def attempt(code: int = 75, before: int | None = 0, after: int | None = 10, **values: Any) -> Attempt:
    cause = values.pop("cause", "stopped" if code == 75 else "exit")
    fixed = {"number": 0, "job_id": "7", "hosts": ("n1", "n2"), "started_s": 1.5, "ended_s": 2.5, "cause": cause}
    return Attempt(code=code, step_before=before, step_after=after, **fixed | values)


def action(*attempts: Attempt, **options: Any) -> str:
    given = {"go_on": "requeue", "max_attempts": 100, "cancelled": False} | options
    return decide(attempts, **given).action


def test_a_run_that_is_done_ends() -> None:
    assert decide([attempt(0)], go_on="requeue", max_attempts=9, cancelled=False) == Decision("stop", "the run is done")


@pytest.mark.parametrize("go_on", ["requeue", "follow"])
def test_a_stop_with_a_checkpoint_goes_on_as_was_asked_for(go_on: str) -> None:
    assert action(attempt(75), go_on=go_on) == go_on
    assert action(attempt(75, None, None), go_on=go_on) == go_on
    assert action(attempt(75, 10, 10), go_on=go_on) == go_on  # preempted before its first step: that happens


@pytest.mark.parametrize("code", [6, 9, 137, 135, 143, 7])
def test_what_a_machine_does_is_tried_again(code: int) -> None:
    assert action(attempt(code)) == "requeue"
    assert action(attempt(code, 10, 10), attempt(code, 10, 10)) == "requeue"


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 8, 42, 134, 139])
def test_what_would_happen_again_is_not(code: int) -> None:
    decision = decide([attempt(code, exception="ValueError")], go_on="requeue", max_attempts=9, cancelled=False)
    assert decision.action == "stop"
    assert f"attempt 0 ended with exit code {code} (exit: ValueError), which would happen again" in decision.reason


def test_memory_of_the_host_is_a_machines_matter_and_that_of_a_device_is_not() -> None:
    assert action(attempt(7, cause="oom")) == "requeue"
    assert action(attempt(7, cause="oom", exception="OutOfMemoryError")) == "stop"


@pytest.mark.parametrize("code", [75, 6, 9, 137, 143, 130])
def test_what_a_person_has_stopped_never_goes_on(code: int) -> None:
    assert action(attempt(code), cancelled=True) == "stop"
    assert action(attempt(130)) == "stop"


def test_nobody_knowing_is_taken_for_cancelled_where_the_run_was_asked_to_end() -> None:
    assert [action(attempt(code), cancelled=None) for code in (75, 143, 9)] == ["stop", "stop", "requeue"]


def test_what_slurm_requeues_itself_is_not_requeued_twice() -> None:
    decision = decide([attempt(75)], go_on="requeue", max_attempts=9, cancelled=False, requeued=True)
    assert decision == Decision("stop", "SLURM has put the job back into the queue itself")
    assert action(attempt(75), requeued=True, go_on="follow") == "stop"


def test_nothing_follows_that_was_not_asked_for() -> None:
    decision = decide([attempt(75, 3, 8)], go_on="never", max_attempts=9, cancelled=False)
    assert decision.action == "stop"
    assert decision.reason == "attempt 0 stopped with a checkpoint, from step 3 to 8; resubmit the run to go on"


def test_three_attempts_without_progress_are_enough() -> None:
    stuck = [attempt(9, 40, 40, number=number) for number in range(3)]
    assert action(*stuck[:2]) == "requeue"
    assert action(*stuck) == "stop"
    assert action(*[attempt(75, 40, 40)] * 3) == "stop"
    assert action(attempt(9, 40, 40, signature="a"), attempt(6, 40, 40, signature="b"), stuck[2]) == "stop"
    reason = decide(stuck, go_on="requeue", max_attempts=9, cancelled=False).reason
    assert reason == "3 attempts made no progress: the newest checkpoint is still of step 40"


def test_progress_in_any_of_the_last_three_attempts_goes_on() -> None:
    assert action(attempt(9, 40, 50), attempt(9, 50, 50), attempt(9, 50, 50)) == "requeue"
    assert action(attempt(9, 40, 50), attempt(9, 50, 50), attempt(9, 50, 50), attempt(9, 50, 50)) == "stop"
    # One that lost what it had is no progress either.
    assert action(attempt(9, 50, 50), attempt(9, 50, 40), attempt(9, 40, 50)) == "stop"


def test_without_known_steps_the_same_failure_three_times_is_enough() -> None:
    same = attempt(9, None, None, signature="lost node n2")
    assert action(same, same) == "requeue"
    assert action(same, same, same) == "stop"
    assert action(same, attempt(9, None, None, signature="other"), same) == "requeue"
    assert action(*[attempt(75, None, None)] * 3) == "requeue"


def test_the_most_that_was_asked_for_is_the_most() -> None:
    assert action(attempt(75), attempt(75), max_attempts=3) == "requeue"
    assert action(attempt(75), attempt(75), attempt(75), max_attempts=3) == "stop"


def test_the_reason_to_go_on_says_how_far_it_came() -> None:
    reason = decide([attempt(75, 3, 8, number=4)], go_on="follow", max_attempts=9, cancelled=False).reason
    assert reason == "attempt 4 stopped with a checkpoint, from step 3 to 8; the run goes on in a follow-up job"
    with pytest.raises(ValueError, match="expected an attempt"):
        decide([], go_on="follow", max_attempts=9, cancelled=False)


def test_signatures_are_equal_for_equal_failures() -> None:
    one = signature("exception", "ValueError", "step 17: loss 3.25 at 0x7f00ab", "train (loop.py:12)")
    assert one == signature("exception", "ValueError", "step 9:  loss 11 at 0xdeadbeef", "train (loop.py:12)")
    others = [
        signature("oom", "ValueError", "step 17: loss 3.25 at 0x7f00ab", "train (loop.py:12)"),
        signature("exception", "TypeError", "step 17: loss 3.25 at 0x7f00ab", "train (loop.py:12)"),
        signature("exception", "ValueError", "epoch 17: loss 3.25 at 0x7f00ab", "train (loop.py:12)"),
        signature("exception", "ValueError", "step 17: loss 3.25 at 0x7f00ab", "train (loop.py:13)"),
    ]
    assert one not in others
    assert len(signature("exception", None, "x" * 5000, "")) == 200


def test_attempts_come_back_as_they_were(tmp_path: Path) -> None:
    assert read(tmp_path) == ([], 0)
    unknown: dict[str, Any] = {"job_id": None, "started_s": None, "ended_s": None}
    kept = [attempt(75, number=0), attempt(9, None, None, number=1, signature="ü\n", exception="E", **unknown)]
    for each in kept:
        append(tmp_path, each)
    assert read(tmp_path) == (kept, 0)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert (tmp_path / FILE_NAME).read_bytes().count(b"\n") == 2


def test_a_line_torn_anywhere_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    append(tmp_path, attempt(75, number=0))
    whole = path.read_bytes()
    append(tmp_path, attempt(9, number=1))
    both = path.read_bytes()
    for length in range(len(whole) + 1, len(both) - 1, 7):
        path.write_bytes(both[:length])
        assert read(tmp_path) == ([attempt(75, number=0)], 1)
        append(tmp_path, attempt(6, number=1))
        assert read(tmp_path) == ([attempt(75, number=0), attempt(6, number=1)], 1)
    # Only the line's end is missing: nothing of it is lost.
    path.write_bytes(both[:-1])
    append(tmp_path, attempt(6, number=2))
    assert [each.number for each in read(tmp_path)[0]] == [0, 1, 2]


def test_lines_of_others_are_counted_and_newer_fields_are_left_out(tmp_path: Path) -> None:
    append(tmp_path, attempt())
    text = (tmp_path / FILE_NAME).read_text()
    newer = text.replace("{", '{"later": 1, ', 1)
    (tmp_path / FILE_NAME).write_text(f'{newer}[]\n7\n{{"number": 1}}\n\xff\n')
    assert read(tmp_path) == ([attempt()], 4)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        append(tmp_path, attempt())


def test_the_last_step_is_that_of_the_newest_committed_checkpoint(tmp_path: Path) -> None:
    assert (last_step(None), last_step(tmp_path)) == (None, 0)
    folder = tmp_path / "checkpoints"
    for name in ("step-000000007", "step-000000012", "step-1000000000.tmp-0a1b2c3d", "step-000000090.trash-0a1b2c3d"):
        (folder / name).mkdir(parents=True)
        (folder / name / "MANIFEST.json").touch()
    (folder / "step-000000099").mkdir()  # without a manifest: it is none
    (folder / "step-000000098").symlink_to(folder / "step-000000007")
    assert last_step(tmp_path) == 12
    assert last_step(tmp_path / "nowhere") == 0
    (tmp_path / "file").touch()
    assert last_step(tmp_path / "file") is None


def test_checkpoints_lie_where_training_puts_them() -> None:
    assert (CHECKPOINTS, CHECKPOINT, MANIFEST) == (FOLDER, checkpoint_files.NAME, checkpoint_files.MANIFEST)
    for step in (0, 5, 10**9):
        assert CHECKPOINT.fullmatch(checkpoint_files.step_path(Path(), step).name)


def test_the_policy_needs_no_torch() -> None:
    code = "import sys, launch.attempts, launch.link, launch.hub, launch.deadline; sys.exit('torch' in sys.modules)"
    assert os.spawnl(os.P_WAIT, os.sys.executable, "python", "-c", code) == 0  # type: ignore[attr-defined]
