"""The kernel's own count of processes killed for memory: in made-up trees of both versions, and for a real one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.oom import OomCounter, oom_kills

ROOT = Path(__file__).resolve().parent.parent
LIMIT_BYTES = 100 << 20
LAUNCHER = f"""
import os, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from launch.oom import OomCounter
counter = OomCounter()
before = counter.increase()
pid = os.fork()
if pid == 0:
    kept = bytearray({2 * LIMIT_BYTES})
    kept[::4096] = bytes(len(kept[::4096]))
    os._exit(0)
print(before, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), counter.increase())
"""


def tree(root: Path, cgroup: str, *mounts: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text("".join(f"{mount}\n" for mount in mounts))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_version_1(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "9:name=systemd:/\n4:cpu,memory:/slurm/job 7\n0::/elsewhere\n",
        "35 31 0:32 / /sys/fs/cgroup/memory rw shared:5 master:1 - cgroup cgroup rw,cpu,memory",
        "36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices",
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
    )
    put(tmp_path / "sys/fs/cgroup/devices/slurm/job 7/memory.oom_control", "oom_kill 99\n")
    file = tmp_path / "sys/fs/cgroup/memory/slurm/job 7/memory.oom_control"
    put(file, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    counter = OomCounter(tmp_path)
    put(file, "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert (oom_kills(tmp_path), counter.increase()) == (5, 2)


def test_version_2_and_a_cgroup_that_does_not_count_itself(tmp_path: Path) -> None:
    tree(tmp_path, "0::/job/step/task\n", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate")
    (tmp_path / "sys/fs/cgroup/job/step/task").mkdir(parents=True)
    put(tmp_path / "sys/fs/cgroup/job/memory.events", "low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 1\n")
    put(tmp_path / "memory.events", "oom_kill 77\n")  # above the mount point
    assert oom_kills(tmp_path) == 2
    put(tmp_path / "sys/fs/cgroup/job/step/memory.events", "oom_kill 1\n")
    assert oom_kills(tmp_path) == 1


def test_a_container_sees_a_part_of_the_tree(tmp_path: Path) -> None:
    tree(
        tmp_path, "4:memory:/docker/abc/job\n", "35 31 0:32 /docker/abc /sys/my\\040groups rw - cgroup cgroup rw,memory"
    )
    put(tmp_path / "sys/my groups/job/memory.oom_control", "oom_kill 4\n")
    assert oom_kills(tmp_path) == 4


@pytest.mark.parametrize("path", ["/docker/other", "/../outside", "/docker/abc/../other"])
def test_what_cannot_be_known_is_none(tmp_path: Path, path: str) -> None:
    assert oom_kills(tmp_path) is None
    assert OomCounter(tmp_path).increase() is None
    tree(tmp_path, f"4:memory:{path}\n", "35 31 0:32 /docker/abc /groups rw - cgroup cgroup rw,memory")
    put(tmp_path / "groups/memory.oom_control", "oom_kill 4\n")
    put(tmp_path / "groups/other/memory.oom_control", "oom_kill 4\n")
    assert oom_kills(tmp_path) is None
    put(tmp_path / "proc/self/cgroup", "4:memory:/docker/abc\n")
    put(tmp_path / "groups/memory.oom_control", "under_oom 0\n")  # an old kernel
    assert oom_kills(tmp_path) is None


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup below this process's own whose memory is limited; skips where none can be made."""
    below = [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line]
    try:
        folder = Path("/sys/fs/cgroup/memory", *(part.lstrip("/") for part in below), f"ringmark-test-{os.getpid()}")
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup of version 1 can be made here: {error}")
    try:
        (folder / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        yield folder
    finally:
        folder.rmdir()


def test_a_process_that_the_kernel_kills_is_counted(small_cgroup: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(small_cgroup)],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["0", "-9", "1"]
