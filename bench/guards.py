"""What else the machine did during a block, and whether that gives reason to doubt it. Unknown is None."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STAT, CPUINFO = Path("/proc/stat"), Path("/proc/cpuinfo")
STOLEN, OTHERS = 0.01, 0.05
"""Shares of the machine's CPU time that a hypervisor or other processes may take before a block counts as contended."""
HARMLESS_THROTTLE = 0x1 | 0x2 | 0x10
"""NVML's reasons for a lower clock that are none to worry: idle, clocks that a person set, sync boost."""


class Watch:
    """Reads the machine's counters before and after a block, on one rank; NVML only where pynvml is installed."""

    def __init__(self, device: "torch.device") -> None:
        self._nvml: Any = None
        self._gpu: Any = None
        if device.type != "cuda":
            return
        try:
            import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
            import torch

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
            self._nvml = pynvml
        except Exception:  # not installed, no driver, a device it does not know: then these things are unknown
            self._nvml = None

    def read(self) -> dict[str, Any]:
        """Counters as they are now."""
        return {
            "cpu_s": _cpu_s(),
            "own_cpu_s": time.process_time(),
            "load_1m": os.getloadavg()[0],
            "cpu_mhz": _cpu_mhz(),
            "gpu": None if self._nvml is None else _gpu(self._nvml, self._gpu),
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


def _cpu_mhz() -> float | None:
    """Mean clock of the cores."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    def known(read: Any) -> Any:
        try:
            return read()
        except nvml.NVMLError:
            return None

    processes = known(lambda: [each.pid for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)])
    return {
        "sm_mhz": known(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "throttle": known(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        "temperature_c": known(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        # In a container NVML may show pids of another namespace: then own ones are among the others.
        "other_processes": None if processes is None else max(0, len(processes) - 1),
        "energy_mj": known(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)),
    }


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What one rank saw of the machine from one reading to the next."""
    cpu = None
    if before["cpu_s"] is not None and after["cpu_s"] is not None:
        cpu = {name: after["cpu_s"][name] - before["cpu_s"][name] for name in after["cpu_s"]}
    first, last = before["gpu"] or {}, after["gpu"] or {}
    energy_mj = (first.get("energy_mj"), last.get("energy_mj"))
    return {
        "cpu_s": cpu,
        "own_cpu_s": after["own_cpu_s"] - before["own_cpu_s"],
        "load_1m": after["load_1m"],
        "cpu_mhz": after["cpu_mhz"],
        "gpu_sm_mhz": last.get("sm_mhz"),
        "gpu_throttle": last.get("throttle"),
        "gpu_temperature_c": last.get("temperature_c"),
        "gpu_other_processes": last.get("other_processes"),
        "energy_j": None if None in energy_mj else (energy_mj[1] - energy_mj[0]) / 1e3,  # type: ignore[operator]
    }


def share_of(guard: Mapping[str, Any], name: str) -> float | None:
    """`steal` or `busy` as a share of all CPU time in a block."""
    cpu = guard.get("cpu_s")
    return cpu[name] / cpu["total"] if cpu and cpu["total"] > 0 else None


def others_share(guards: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of a machine's CPU time that went to processes other than these ranks of it."""
    cpu = guards[0].get("cpu_s")
    if not cpu or cpu["total"] <= 0:
        return None
    own_s = sum(guard["own_cpu_s"] for guard in guards)
    return float(max(0.0, cpu["busy"] - own_s) / cpu["total"])


def contention(guards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a block is to be doubted, from what its ranks on each node saw; empty if nothing speaks against it."""
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
