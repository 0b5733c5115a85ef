"""`ringmark compare`, run for real: arms that take turns, verdicts and exit codes, commits, and what goes wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.compare import comparison
from bench.record import read
from launch.argv import UsageError
from launch.arm import Arm, ArmLost
from launch.compare import exit_code, run, steps_of_a_block
from launch.compare_argv import check
from launch.compare_argv import read as read_argv
from launch.reporter import SOCKET
from tests.forked_arm import ForkedArm
from tests.launches import environment, left_behind, processes_of
from tests.spin import spinning

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "import sys; from launch.compare import compare; sys.exit(compare(sys.argv[1:]))"
FAST = ("--block-s", "0.02", "--warmup-steps", "3", "--pairs", "6", "--max-pairs", "6")


def start(folder: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, *argv],
        cwd=folder, env=environment(folder, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_an_arm_of_far_more_work_is_slower_and_everything_is_recorded(folder: Path) -> None:
    arms = (spinning(folder, 0), spinning(folder, 4000))
    process = start(folder, *arms, *FAST, "--out", "out", "--", "--batch-size", "4", "--ranks", "2", "--device", "cpu")
    out, err = process.communicate(timeout=100)
    (record,) = read(folder / "out")[0]
    verdict = comparison(record).verdict
    assert verdict.interval is not None
    assert verdict.interval.mean > 0.5
    # Whether it is believed is up to the machine; the exit code says so.
    assert process.returncode == {"slower": 1, "inconclusive": 3}[verdict.word], err
    assert f"B is {verdict.word}: +" in out
    assert (record.cell["a"], record.cell["b"], record.cell["ranks"]) == (*arms, 2)
    blocks = record.raw["blocks"]
    assert sorted(block["arm"] for block in blocks) == ["A"] * 6 + ["B"] * 6
    # As many steps in each block of either arm: the first ones of a turn are slower, and would weigh less in more.
    assert {len(block["step_s"][0]) for block in blocks} == {record.raw["steps"]}
    for block in blocks:
        assert len(block["wall_s"]) == len(block["step_s"]) == len(block["cpu_s"]) == 2
        assert len(block["step_s"][0]) >= 20
        assert block["samples"] == 8
        assert block["guards"]["load_1m"] is not None
        assert block["guards"]["cpu_s"]["steal"] >= 0
    assert all(each["commit"] for each in record.raw["environments"])
    assert (folder / "out" / "report.html").is_file()
    assert left_behind(folder) == []


def test_both_arms_keep_to_the_same_cpus_as_many_as_they_have_threads(tmp_path: Path) -> None:
    words = [*spinning(tmp_path, 0).split(), "--batch-size", "4", "--device", "cpu"]
    with ForkedArm(words, 1, ROOT) as one, ForkedArm(words, 1, ROOT) as other:
        one.ready(60)
        other.ready(60)
        first, second = (os.sched_getaffinity(arm._process._process.pid) for arm in (one, other))  # type: ignore[attr-defined]
    assert first == second
    assert len(first) == 1


def test_an_arm_sleeps_while_the_other_works(tmp_path: Path) -> None:
    with Arm([*spinning(tmp_path, 0).split(), "--batch-size", "4", "--device", "cpu"], 2, ROOT) as arm:
        arm.ready(60)
        first = arm.ask(20, 60)
        assert len(first["step_s"][0]) == 20
        before = _cpu_ticks(arm)
        time.sleep(1.0)
        assert _cpu_ticks(arm) - before <= 0.1 * os.sysconf("SC_CLK_TCK")
        assert len(arm.ask(7, 60)["step_s"][1]) == 7


def _cpu_ticks(arm: Arm) -> int:
    """Processor time of the arm's ranks so far."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(arm._folder).encode() in (entry / "cmdline").read_bytes():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    assert total
    return total


def test_two_commits_run_their_own_code(tmp_path: Path) -> None:
    repository = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", "--local", str(ROOT), str(repository)], check=True)
    for name in ("launch", "bench"):  # what is not committed yet
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, repository / name, ignore=ignored, dirs_exist_ok=True)

    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(repository), *identity, *words], check=True, capture_output=True)

    git("add", "-A")
    git("commit", "--quiet", "--allow-empty", "-m", "now")
    loop = repository / "ddp" / "loop.py"
    text = loop.read_text()
    head = "    trainer.train_mode()\n    for batch in batches:\n"
    assert head in text
    loop.write_text(text.replace(head, head + "        __import__('time').sleep(0.02)\n"))
    git("commit", "--quiet", "-am", "slower")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, "--commits", "HEAD~1", "HEAD", *FAST, "--out", "out", "--",
         "--model", "mlp", "--batch-size", "4", "--device", "cpu"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, err = process.communicate(timeout=100)
    assert process.returncode in (1, 3), err
    (record,) = read(tmp_path / "out")[0]
    commits = [each["commit"] for each in record.raw["environments"]]
    assert len(set(commits)) == 2
    assert min(min(block["step_s"][0]) for block in record.raw["blocks"] if block["arm"] == "B") > 0.02
    trees = subprocess.run(
        ["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert len(trees.stdout.splitlines()) == 1


BROKEN = """
from torch import nn

class Net(nn.Linear):
    def forward(self, x):
        assert not self.training, "broken on purpose"
        return super().forward(x.flatten(1))

def net(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)
"""
NOISY = """
import itertools, time
from pathlib import Path
from torch import nn

def phase():
    for number in itertools.count():
        try:
            Path(__file__).with_name(f"phase-{number}").touch(exist_ok=False)
            return number
        except FileExistsError:
            pass

class Net(nn.Linear):
    calls, phase = 0, phase()
    def forward(self, x):
        self.calls += 1
        time.sleep(0.001 * (1 + (self.calls // 20 * 7 + self.phase) % 5))
        return super().forward(x.flatten(1))

def net(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)
"""


def test_an_arm_that_is_lost_ends_the_comparison_with_a_record_of_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    arms = (spinning(tmp_path, 0), f"--model {tmp_path}/broken.py:net")
    asked = read_argv([*arms, *FAST, "--out", str(tmp_path / "out"), "--", "--batch-size", "4", "--device", "cpu"])
    with pytest.raises(ArmLost, match="ended with exit code 1"):
        run(asked, ForkedArm)
    (record,) = read(tmp_path / "out")[0]
    assert (record.status, record.cell["b"]) == ("failed", arms[1])
    assert "broken.py:net" in str(record.error)


def test_an_arm_that_died_while_the_other_worked_is_lost_and_leaves_nothing(tmp_path: Path) -> None:
    words = [*spinning(tmp_path, 0).split(), "--batch-size", "4", "--device", "cpu"]
    with ForkedArm(words, 1, ROOT) as arm:
        arm.ready(60)
        arm._process.kill()
        arm._process.wait(20)
        with pytest.raises(ArmLost, match="ended with exit code 137"):
            arm.ask(3, 20)
    assert not arm._folder.exists()


def test_the_self_test_that_fails_ends_with_3_and_b_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    arm = f"--model {tmp_path}/noisy.py:net"
    argv = [arm, f"{arm} --amp bf16", "--self-test", *FAST, "--out", str(tmp_path / "out"), "--", "--device", "cpu"]
    asked = read_argv([*argv, "--batch-size", "4"])
    found = [comparison(record) for record in run(asked, ForkedArm)]
    assert exit_code(asked, found) == 3
    (record,) = read(tmp_path / "out")[0]
    assert record.cell["a"] == record.cell["b"] == arm
    assert comparison(record).verdict.word != "same"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_nothing_is_left_of_a_comparison_that_is_ended(folder: Path, number: signal.Signals) -> None:
    options = ("--block-s", "1", "--out", "out", "--", "--batch-size", "4")
    process = start(folder, spinning(folder, 0), spinning(folder, 1), *options)
    deadline = time.monotonic() + 90
    while sum(_name(pid).startswith("rank") for pid in processes_of(folder)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=60)
    arms = list(folder.glob("ringmark-arm-*"))
    assert len(arms) == (2 if number == signal.SIGKILL else 0)  # a folder is what nobody can remove who is killed
    for arm in arms:
        (arm / SOCKET).unlink()
        arm.rmdir()
    assert left_behind(folder, 15) == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "expected two sets of options"),
        (["--amp bf16"], "expected two sets of options"),
        (["--commits", "HEAD"], "expected two sets of options"),
        (["", "", "--", "--ranks", "x"], "expected --ranks as a number of at least 1, got 'x'"),
        (["", "", "--pairs", "7"], "even numbers in --pairs"),
        (["", "", "--pairs", "4"], "even numbers in --pairs"),
        (["", "", "--margin-percent", "0"], "--margin-percent above 0"),
        (["--amp int8", ""], "bf16"),
        (["--model 'mlp", ""], "close the quotes"),
        (["", "--model mpl"], "did you mean mlp"),
        (["", "", "--", "--global-batch-size", "5", "--ranks", "2"], "a global batch that 2 ranks can share"),
        (["--workers 0", "--workers 8 --epochs 3"], "got --epochs, --workers, which change nothing"),
        (["", "--lr 0.2 --mixup 0.1"], "got --lr, --mixup, which change nothing"),
    ],
)
def test_a_mistake_is_one_sentence(argv: list[str], expected: str) -> None:
    with pytest.raises((UsageError, ValueError), match=expected):
        check(read_argv(argv))


def test_options_that_a_comparison_does_not_use_are_named() -> None:
    common = ("--", "--data", "digits", "--epochs", "3", "--momentum", "0.8", "--model", "mlp")
    assert check(read_argv(["", "--amp bf16", *common])) == ["--data", "--epochs"]
    assert check(read_argv(["--commits", "HEAD", "HEAD", *common, "--data-dir", "x"])) == [
        "--data",
        "--data-dir",
        "--epochs",
    ]
    assert check(read_argv(["--commits", "HEAD", "HEAD", "--", "--of-another-commit"])) == []
    assert check(read_argv(["--momentum 0.5", "--momentum 0.9"])) == []


def test_ranks_are_taken_out_of_the_common_options() -> None:
    asked = read_argv(["--channels-last", "", "--pairs", "8", "--", "--model", "mlp", "--ranks=3", "--amp", "bf16"])
    assert asked.arms == ("--channels-last", "")
    assert (asked.ranks, asked.common, asked.options.pairs) == (3, ("--model", "mlp", "--amp", "bf16"), 8)


def test_commits_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected two commits"):
        run(read_argv(["--commits", "HEAD", "no-such-branch", "--out", str(tmp_path)]))


def test_a_block_has_twenty_steps_or_two_seconds() -> None:
    assert steps_of_a_block(0.5, 2.0) == 4
    assert steps_of_a_block(5.0, 2.0) == 2
    assert steps_of_a_block(0.5, 0.1) == 20
    assert steps_of_a_block(0.001, 0.1) == 100
    assert steps_of_a_block(0.001, 2.0) == 500
    assert [steps_of_a_block(0.5, 0.1, turns) for turns in (2, 4, 64)] == [10, 5, 4]


def test_an_arm_that_is_not_ready_in_time_is_told(tmp_path: Path) -> None:
    with Arm(spinning(tmp_path, 0).split(), 1, ROOT) as arm, pytest.raises(ArmLost, match=r"not ready after 0\.1 s"):
        arm.ready(0.1)
