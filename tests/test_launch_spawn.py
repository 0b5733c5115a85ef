"""Ranks that one command starts: they meet, get its signals, and its exit code is that of the first to fail."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist

from ddp.config import TrainConfig
from ddp.env import ALONE, RankInfo, read_rank
from ddp.mistake import Mistake
from ddp.parallel_config import ParallelConfig
from launch.spawn import HOST, PASSED_ON, ranks_to_spawn, spawn

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = RankInfo(rank=0, world_size=2, local_rank=0, local_world_size=2, node_rank=0, launched=True)


def meet() -> int:
    """Join the group that the variables describe, and add up the ranks -> their sum."""
    info = read_rank(os.environ)
    dist.init_process_group("gloo", rank=info.rank, world_size=info.world_size)
    numbers = torch.tensor([info.local_rank])
    dist.all_reduce(numbers)
    return int(numbers)


def meet_well() -> int:
    """0 if all three ranks were there."""
    return 0 if meet() == 3 and os.environ["MASTER_ADDR"] == HOST else 9


def wait_to_be_ended() -> NoReturn:
    time.sleep(50)
    os._exit(77)


def told_to_end(number: int, frame: object) -> NoReturn:
    os.write(2, b"told to end\n")
    os._exit(0)


def second_is_killed() -> int:
    """The others notice that they are asked to end before they are made to."""
    meet()
    signal.signal(signal.SIGTERM, told_to_end)
    dist.barrier()
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    wait_to_be_ended()


def last_diverges() -> int:
    meet()
    return 5 if os.environ["RANK"] == "2" else wait_to_be_ended()


def raises() -> int:
    meet()
    if os.environ["RANK"] == "1":
        raise RuntimeError("the second rank is broken")
    wait_to_be_ended()


def stops_on_a_signal() -> int:
    """Every rank waits for its own signal; rank 0 gives it to the parent only."""
    received: list[int] = []
    for number in PASSED_ON:
        signal.signal(number, lambda number, frame: received.append(number))
    meet()
    if os.environ["RANK"] == "0":
        os.kill(os.getppid(), signal.SIGUSR1)
    deadline = time.monotonic() + 20
    while not received and time.monotonic() < deadline:
        time.sleep(0.01)
    return 75 if received == [signal.SIGUSR1] else 78


def dies_of_a_signal() -> int:
    meet()
    if os.environ["RANK"] == "0":
        os.kill(os.getppid(), signal.SIGTERM)
    wait_to_be_ended()


def test_ranks_meet_and_all_end_well(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert spawn(meet_well, 3, "fork") == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err == ""


def test_a_killed_rank_is_named_and_ends_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    assert spawn(second_is_killed, 3, "fork") == 128 + signal.SIGKILL
    line = "ringmark: rank 1 ended first, by SIGKILL; the others were stopped\n"
    assert capfd.readouterr().err == 2 * "told to end\n" + line


def test_a_rank_that_raises_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert spawn(raises, 2, "fork") == 1
    shown = capfd.readouterr().err
    assert "RuntimeError: the second rank is broken" in shown
    assert shown.endswith("ringmark: rank 1 ended first, with exit code 1; the others were stopped\n")


def test_an_exit_code_that_a_rank_has_explained_is_passed_on_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    assert spawn(last_diverges, 3, "fork") == 5
    assert capfd.readouterr().err == ""


def test_a_signal_reaches_every_rank_which_may_end_in_its_own_time(capfd: pytest.CaptureFixture[str]) -> None:
    assert spawn(stops_on_a_signal, 2, "fork") == 75
    assert capfd.readouterr().err == ""


def test_ranks_that_die_of_a_passed_on_signal_are_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    assert spawn(dies_of_a_signal, 2, "fork") == 128 + signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_who_starts_ranks() -> None:
    def config(strategy: str, ranks: int | None = None) -> TrainConfig:
        return TrainConfig(strategy=strategy, device="cpu", parallel=ParallelConfig(spawn_ranks=ranks))

    assert ranks_to_spawn(config("ddp"), ALONE) is None
    assert ranks_to_spawn(config("ddp"), TORCHRUN) is None
    assert ranks_to_spawn(config("ddp-spawn"), ALONE) == 1
    assert ranks_to_spawn(config("ddp-spawn", 3), ALONE) == 3
    with pytest.raises(Mistake, match="expected no torchrun with --strategy ddp-spawn"):
        ranks_to_spawn(config("ddp-spawn"), TORCHRUN)


def test_one_command_trains_on_two_ranks(tmp_path: Path) -> None:
    words = ["--model", "convnet", "--data", "digits", "--strategy", "ddp-spawn", "--spawn-ranks", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", *words, "--device", "cpu", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"ranks": 2' in (tmp_path / "records.jsonl").read_text()
