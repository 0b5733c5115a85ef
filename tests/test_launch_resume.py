"""Real launches that are stopped: by a signal to the launcher, by Ctrl-C, and by the death of a rank."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.processes import descendants
from launch.stacks import process_state
from tests.waiting import wait_until

pytestmark = pytest.mark.xdist_group("launches")
ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    "--model",
    "convnet",
    "--data",
    "digits",
    "--lr",
    "0.2",
    "--sync-bn",
    "--epochs",
    "6",
    "--checkpoint-every",
    "3",
]
STOPPED, INTERRUPTED = 75, 130


def start(out: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "train", "--nproc-per-node", "2", *FLAGS, "--out", str(out), *flags],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for_checkpoints(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until so many checkpoints have been committed, one after the other."""
    wanted, newest, deadline = f"step-{3 * count:09}", "", time.monotonic() + 60
    while newest < wanted and time.monotonic() < deadline and process.poll() is None:
        names = (path.name for path in (out / "checkpoints").glob("step-*[0-9]"))
        newest = max((name for name in names if "." not in name), default="")
        time.sleep(0.01)
    assert newest >= wanted, f"no checkpoints: {process.poll()}"


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks, by rank: each leads a session of its own, under its name."""
    leaders = [pid for pid in descendants([process.pid]) if os.getsid(pid) == pid]
    names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in leaders}
    return sorted((pid for pid, name in names.items() if name.startswith("rank ")), key=lambda pid: names[pid])


def outcome(out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(results of the epochs without their times, weights)."""
    record = json.loads((out / "records.jsonl").read_text().splitlines()[-1])
    assert record["status"] == "ok"
    epochs = [{key: value for key, value in epoch.items() if key[-2:] != "_s"} for epoch in record["raw"]["epochs"]]
    return epochs, torch.load(out / "model.pt", weights_only=True)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    out = tmp_path_factory.mktemp("golden")
    process = start(out)
    assert process.wait(timeout=100) == 0, process.communicate()[1]
    return outcome(out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all_ranks_with_a_checkpoint_and_the_run_goes_on_from_it(
    tmp_path: Path, golden: tuple[list[dict[str, Any]], dict[str, Any]], number: int
) -> None:
    process = start(tmp_path)
    wait_for_checkpoints(tmp_path, 3, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == STOPPED
    _, complaints = process.communicate()
    assert "ringmark: stopped by a signal; add --resume auto to go on" in complaints
    assert "Traceback" not in complaints
    assert not (tmp_path / "records.jsonl").exists()
    if number == signal.SIGINT:
        return  # what is resumed is the same, and takes a while

    resumed = start(tmp_path, "--resume", "auto")
    assert resumed.wait(timeout=100) == 0
    assert "resumed from" in resumed.communicate()[1]
    epochs, weights = outcome(tmp_path)
    assert epochs == golden[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in golden[1].items())


def test_a_killed_rank_ends_the_run_and_what_follows_is_as_if_it_had_lived(
    tmp_path: Path, golden: tuple[list[dict[str, Any]], dict[str, Any]]
) -> None:
    process = start(tmp_path)
    wait_for_checkpoints(tmp_path, 4, process)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    assert process.wait(timeout=60) == 128 + signal.SIGKILL
    resumed = start(tmp_path, "--resume", "auto")
    assert resumed.wait(timeout=100) == 0, resumed.communicate()[1]
    epochs, weights = outcome(tmp_path)
    assert epochs == golden[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in golden[1].items())


SLOW = """
import time
from pathlib import Path
from torch import nn

class Net(nn.Linear):
    def forward(self, x):
        if self.training:
            Path(__file__).with_name("started").touch()
            time.sleep(60)
        return super().forward(x.flatten(1))

def net(shape, classes):
    return Net(64, classes)
"""


def test_a_second_ctrl_c_stops_at_once_in_the_middle_of_a_step(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SLOW)
    process = start(tmp_path / "out", "--model", f"{tmp_path / 'mine.py'}:net", "--no-sync-bn")
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = workers_of(process)
    time.sleep(0.5)  # the other rank is in its step as well
    process.send_signal(signal.SIGINT)
    wait_until(lambda: not _is_pending(process.pid, signal.SIGINT))
    time.sleep(1)
    assert process.poll() is None  # one is a request
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == INTERRUPTED
    assert {process_state(worker) for worker in workers} == {"gone"}


def _is_pending(pid: int, number: int) -> bool:
    """Whether a signal is still on its way: a second one would then be the same."""
    status = Path(f"/proc/{pid}/status").read_text()
    return any(int(status.partition(name)[2].split()[0], 16) >> (number - 1) & 1 for name in ("SigPnd:", "ShdPnd:"))
