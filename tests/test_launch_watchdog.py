"""What counts as progress, and that a hang is noticed in time: with real processes and real collectives."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from launch.events import Stack
from launch.stacks import RankHandle, odd_one_out, process_state
from launch.watchdog import Watchdog, cpu_s
from tests.hanging_ranks import hanging_ranks
from tests.waiting import wait_until

TIMEOUT_S = 2.5
IDLE = "import time; time.sleep(60)"
BUSY = "while True: pass"
BUSY_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{BUSY}'])"


class Alarm:
    """Remembers what a watchdog calls it with, and when."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Stack, ...], float]] = []
        self.rang = threading.Event()

    def __call__(self, stacks: tuple[Stack, ...], stalled_s: float) -> None:
        self.calls.append((stacks, stalled_s))
        self.rang.set()


@contextmanager
def process(code: str, folder: Path) -> Iterator[RankHandle]:
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as started:
        try:
            yield RankHandle(rank=0, host="n1", pid=started.pid, stack_file=folder / "0.stack")
        finally:
            os.killpg(started.pid, signal.SIGKILL)


def is_stopped(rank: int) -> None:
    dist.all_reduce(torch.ones(4))
    if rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(4))


def skips_one(rank: int) -> None:
    if rank != 1:
        dist.all_reduce(torch.ones(4))
    time.sleep(100)


@pytest.mark.parametrize(("work", "culprit"), [(is_stopped, 2), (skips_one, 1)])
@pytest.mark.parametrize("reports", [True, False])
def test_a_hang_is_noticed_and_its_cause_named(
    work: Callable[[int], None], culprit: int, reports: bool, tmp_path: Path
) -> None:
    alarm = Alarm()
    states = ["stopped" if work is is_stopped and rank == culprit else "sleeping" for rank in range(3)]
    with hanging_ranks(work, 3, tmp_path) as handles:
        wait_until(lambda: [process_state(each.pid) for each in handles] == states)
        start = time.monotonic()
        with Watchdog(handles, timeout_s=TIMEOUT_S, on_hang=alarm) as dog:
            if reports:
                dog.progress(0, 7)
            assert alarm.rang.wait(TIMEOUT_S + 30)
        assert time.monotonic() - start >= TIMEOUT_S
    ((stacks, stalled_s),) = alarm.calls
    assert odd_one_out(stacks)[0] == (culprit,)
    assert all(stack.frames for stack in stacks)
    assert TIMEOUT_S <= stalled_s <= TIMEOUT_S + 3


@pytest.mark.parametrize("code", [BUSY, BUSY_CHILD])
def test_processor_time_counts_until_a_step_is_reported(code: str, tmp_path: Path) -> None:
    alarm = Alarm()
    with process(code, tmp_path) as handle:
        wait_until(lambda: cpu_s(handle.pid) > 0.2)
        with Watchdog([handle], timeout_s=TIMEOUT_S, on_hang=alarm) as dog:
            assert not alarm.rang.wait(2 * TIMEOUT_S)
            dog.progress(0, 1)
            assert alarm.rang.wait(TIMEOUT_S + 30)
            assert dog.steps == {0: 1}


def test_reports_and_logs_are_progress(tmp_path: Path) -> None:
    alarm = Alarm()
    logs = tmp_path / "logs"
    logs.mkdir()
    with process(IDLE, tmp_path) as handle:
        with Watchdog([handle], timeout_s=TIMEOUT_S, logs=logs, on_hang=alarm) as dog:
            for step in range(8):
                assert not alarm.rang.wait(TIMEOUT_S / 4)
                dog.progress(0, step)
            for _ in range(8):
                with (logs / "rank-0").open("a") as file:
                    file.write("a line\n")
                assert not alarm.rang.wait(TIMEOUT_S / 4)
            assert alarm.rang.wait(TIMEOUT_S + 30)
        assert len(alarm.calls) == 1


def test_a_watchdog_that_is_stopped_is_silent(tmp_path: Path) -> None:
    alarm = Alarm()
    with process(IDLE, tmp_path) as handle, Watchdog([handle], timeout_s=2, on_hang=alarm):
        pass
    assert not alarm.rang.wait(3)


def test_the_alarm_may_stop_its_watchdog(tmp_path: Path) -> None:
    stopped = threading.Event()

    def alarm(stacks: tuple[Stack, ...], stalled_s: float) -> None:
        dog.stop()
        stopped.set()

    with process(IDLE, tmp_path) as handle:
        dog = Watchdog([handle], timeout_s=0.3, on_hang=alarm)
        dog.start()
        assert stopped.wait(30)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="expected a timeout above 0 seconds"):
        Watchdog([], timeout_s=timeout_s, on_hang=Alarm())
