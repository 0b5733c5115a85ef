"""What else the machine did during a block, and whether that gives reason to doubt it. Unknown is None."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.gpu_counters import counters_of

if TYPE_CHECKING:
    import torch

STAT, CPUINFO = Path("/proc/stat"), Path("/proc/cpuinfo")
LEAST_WINDOW_S = 0.2
"""Seconds below which shares of CPU time are unknown: the system counts in ticks of 10 ms."""
CHILDREN = Path("/proc/thread-self/children")
TASKS = Path("/proc/self/task")
STOLEN, OTHERS = 0.01, 0.05
"""Shares of the machine's CPU time that a hypervisor or other processes may take before a block counts as contended."""
GPU_NAMES = ("sm_mhz", "throttle", "temperature_c", "other_processes")
HARMLESS_THROTTLE = 0x1 | 0x2 | 0x10
"""NVML's reasons for a lower clock that are none to worry: idle, clocks that a person set, sync boost."""


class Watch:
    """Reads the machine's counters before and after a block, on one rank; NVML only where pynvml is installed."""

    def __init__(self, device: "torch.device") -> None:
        self._gpu = counters_of(device)

    def read(self) -> dict[str, Any]:
        """Counters as they are now."""
        return {
            "time_s": time.monotonic(),
            "cpu_s": _cpu_s(),
            "own_cpu_s": _own_cpu_s(),
            "load_1m": os.getloadavg()[0],
            "cpu_mhz": _cpu_mhz(),
            "gpu": None if self._gpu is None else self._gpu.read(),
        }


def _cpu_s() -> dict[str, float] | None:
    """Seconds of all cores together since boot: busy (guests are in user time already), stolen, and in total."""
    try:
        fields = [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = fields
    busy = user + nice + system + irq + softirq
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    return {
        "busy": busy / ticks_per_s,
        "steal": steal / ticks_per_s,
        "total": (busy + idle + iowait + steal) / ticks_per_s,
    }


def children_cpu_s() -> float | None:
    """Seconds of all child processes, alive or ended, in ticks of 10 ms; None where the system does not list them."""
    if not CHILDREN.exists():
        return None
    # Its user and system time, and that of its own children that have ended.
    ticks = sum(sum(map(int, stat[11:15])) for stat in _children())
    ended = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") + ended.children_user + ended.children_system


def children_run() -> bool:
    """Whether a child process uses the CPU or waits for its turn to; False where the system does not list them."""
    return any(stat[:1] == ["R"] for stat in _children())


def _children() -> list[list[str]]:
    """What the system says of each child process, beginning with its state."""
    children = [child for task in TASKS.iterdir() for child in _words(task / "children")]
    return [_words(Path(f"/proc/{child}/stat")) for child in children]


def _words(path: Path) -> list[str]:
    """Words of a file of /proc, behind the command's name if there is one; none if the process has ended meanwhile."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _own_cpu_s() -> float | None:
    """Seconds of this process and its children: the loader processes of a rank are no others."""
    children_s = children_cpu_s()
    return None if children_s is None else time.process_time() + children_s


def _cpu_mhz() -> float | None:
    """Mean clock of the cores."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What one rank saw of the machine from one reading to the next."""
    cpu = None
    if before["cpu_s"] is not None and after["cpu_s"] is not None:
        cpu = {name: after["cpu_s"][name] - before["cpu_s"][name] for name in after["cpu_s"]}
    first, last = before["gpu"] or {}, after["gpu"] or {}
    own_s = (before["own_cpu_s"], after["own_cpu_s"])
    energy_mj = (first.get("energy_mj"), last.get("energy_mj"))
    return {
        "window_s": after["time_s"] - before["time_s"],
        "cpu_s": cpu,
        "own_cpu_s": None if None in own_s else own_s[1] - own_s[0],
        "load_1m": after["load_1m"],
        "cpu_mhz": after["cpu_mhz"],
        **{f"gpu_{name}": last.get(name) for name in GPU_NAMES},
        "energy_j": None if None in energy_mj else (energy_mj[1] - energy_mj[0]) / 1e3,  # type: ignore[operator]
    }


def share_of(guard: Mapping[str, Any], name: str) -> float | None:
    """`steal` or `busy` as a share of all CPU time in a block; None if it is unknown, or the block was too short."""
    cpu = _long_enough(guard)
    return None if cpu is None else cpu[name] / cpu["total"]


def others_share(guards: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of a machine's CPU time that went to processes other than these ranks of it; None as in share_of."""
    cpu = _long_enough(guards[0])
    own_s = [guard.get("own_cpu_s") for guard in guards]
    if cpu is None or None in own_s:
        return None
    return float(max(0.0, cpu["busy"] - sum(each for each in own_s if each is not None)) / cpu["total"])


def is_known(guards: Sequence[Mapping[str, Any]]) -> bool:
    """Whether anything can be said of who else used the CPUs during a block."""
    return others_share(guards) is not None or share_of(guards[0], "steal") is not None


def _long_enough(guard: Mapping[str, Any]) -> Mapping[str, float] | None:
    """The CPU time of a block, if it was so long that a tick does not matter; older records know no window."""
    cpu = guard.get("cpu_s")
    if not cpu or cpu["total"] <= 0:
        return None
    window_s = guard.get("window_s")
    return cpu if (cpu["total"] if window_s is None else window_s) >= LEAST_WINDOW_S else None


def contention(guards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a block is to be doubted, from what its ranks on each node saw; empty if nothing is known against it."""
    found: list[str] = []
    for node in sorted({guard["node"] for guard in guards}):
        members = [guard for guard in guards if guard["node"] == node]
        stolen, others = share_of(members[0], "steal"), others_share(members)
        if stolen is not None and stolen > STOLEN:
            found.append(f"{100 * stolen:.0f} % of the CPU was stolen")
        if others is not None and others > OTHERS:
            found.append(f"other processes used {100 * others:.0f} % of the CPU")
        if any((guard.get("gpu_throttle") or 0) & ~HARMLESS_THROTTLE for guard in members):
            found.append("a GPU lowered its clock")
        if any(guard.get("gpu_other_processes") for guard in members):
            found.append("other processes used a GPU")
    return list(dict.fromkeys(found))
