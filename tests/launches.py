"""Starts real launches for tests, and looks for what they leave behind."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = str(ROOT / "tests" / "launched.py")
LAUNCHER = (sys.executable, "-P", str(ROOT / "launch" / "boot.py"), "agent")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
UNWANTED = ("OMP_NUM_THREADS", "RINGMARK_RANK_SOCKET")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Ours, with a folder of its own for temporary files."""
    return {key: value for key, value in os.environ.items() if key not in UNWANTED} | {"TMPDIR": str(folder)} | more


def start(folder: Path, *argv: str, launcher: tuple[str, ...] = LAUNCHER, **more: str) -> subprocess.Popen[str]:
    """A launch that runs."""
    return subprocess.Popen(
        [*launcher, *argv],
        cwd=folder,
        env=environment(folder, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(
    folder: Path, *argv: str, launcher: tuple[str, ...] = LAUNCHER, **more: str
) -> subprocess.CompletedProcess[str]:
    """A launch that has ended."""
    process = start(folder, *argv, launcher=launcher, **more)
    out, err = process.communicate(timeout=100)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def facts(out: str) -> dict[int, dict[str, Any]]:
    """What the ranks of mode `show` said, by rank."""
    said: dict[int, str] = {}
    for line in out.splitlines():
        if "facts " in line:
            rank, _, part = line.partition("facts ")[2].partition(" ")
            said[int(rank)] = said.get(int(rank), "") + part
    return {rank: json.loads(text) for rank, text in said.items()}


def processes_of(folder: Path) -> list[int]:
    """Processes that were started with this folder for temporary files, or forked from such."""
    mark = f"TMPDIR={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def listening_ports(pids: list[int]) -> list[tuple[str, int]]:
    """Addresses (hexadecimal, as /proc/net writes them) and ports on which these processes listen."""
    inodes = set()
    for pid in pids:
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(link)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        except OSError:
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found


def left_behind(folder: Path, timeout_s: float = 20.0) -> list[str]:
    """What still exists of a launch after so long: processes and folders."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        left = [f"process {pid}" for pid in processes_of(folder)]
        left += [str(path) for path in folder.iterdir() if path.name.startswith(("ringmark-", "torchelastic_"))]
        if not left:
            return []
        time.sleep(0.05)
    return left


def temporary_folder() -> Path:
    """A folder with a short name: sockets live in it."""
    return Path(tempfile.mkdtemp(prefix="rm-test-"))
