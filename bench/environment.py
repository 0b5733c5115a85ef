"""What a number depends on beside the configuration and the code: machine and versions. Only an allow-list is read."""

import os
import platform
import re
import socket
from pathlib import Path
from typing import Any

import torch

from ddp.context import DistContext

CPUINFO = Path("/proc/cpuinfo")
DRIVER = Path("/proc/driver/nvidia/version")
ARM_FIELDS = ("CPU implementer", "CPU part")
"""What /proc/cpuinfo has on ARM, where it has no model name."""
DRIVER_LINE = re.compile(r"^NVRM version: .*?\s(\d+\.\d+(?:\.\d+)*)\s", re.ASCII)


def cpu_name(text: str, machine: str) -> str | None:
    """Name of the processor from /proc/cpuinfo, or else implementer and part of its cores, or else the architecture."""
    pairs = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in text.splitlines())]
    for name, value in pairs:
        if name == "model name" and value:
            return value
    found = {field: list(dict.fromkeys(value for name, value in pairs if name == field)) for field in ARM_FIELDS}
    if all(found.values()):
        kinds = ", ".join(f"{field.removeprefix('CPU ')} {' '.join(values)}" for field, values in found.items())
        return f"{machine or 'ARM'}, {kinds}"
    return machine or None


def driver_version(text: str) -> str | None:
    """The version in /proc/driver/nvidia/version; None if its first line is not as it should be."""
    found = DRIVER_LINE.match(text)
    return found[1] if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _driver() -> str | None:
    """Version of NVIDIA's driver as NVML tells it, or, where pynvml is not installed, the kernel's module."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    except Exception:  # not installed, or it does not find the driver
        return driver_version(_read(DRIVER))


def capture(ctx: DistContext) -> dict[str, Any]:
    """The environment of a record; unknown is None. Every rank must call this."""
    told = ctx.gather([ctx.node_rank, socket.gethostname(), sorted(os.sched_getaffinity(0))])
    here = [cpus for node, _, cpus in told if node == ctx.node_rank]  # each rank may have a slice of its own
    on_gpu = ctx.device.type == "cuda"
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None
    return {
        "host": socket.gethostname(),
        "nodes": len({node for node, _, _ in told}),
        "cpu": cpu_name(_read(CPUINFO), platform.machine()),
        "cores": len(set().union(*here)),
        "device": torch.cuda.get_device_name(ctx.device) if on_gpu else "cpu",
        "gpus": torch.cuda.device_count() if on_gpu else 0,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "nccl": nccl,
        "driver": _driver() if on_gpu else None,
        "backend": ctx.backend,
        "threads_per_rank": torch.get_num_threads(),
        "load_1m": round(os.getloadavg()[0], 2),
    }
