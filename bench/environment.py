"""What a number depends on beside the configuration and the code: machine and versions. Only an allow-list is read."""

import os
import platform
import socket
from pathlib import Path
from typing import Any

import torch

from ddp.context import DistContext


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)


def capture(ctx: DistContext) -> dict[str, Any]:
    """The environment of a record; unknown is None. Every rank must call this."""
    told = ctx.gather([ctx.node_rank, socket.gethostname(), sorted(os.sched_getaffinity(0))])
    here = [cpus for node, _, cpus in told if node == ctx.node_rank]  # each rank may have a slice of its own
    on_gpu = ctx.device.type == "cuda"
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None
    return {
        "host": socket.gethostname(),
        "nodes": len({node for node, _, _ in told}),
        "cpu": _cpu_name(),
        "cores": len(set().union(*here)),
        "device": torch.cuda.get_device_name(ctx.device) if on_gpu else "cpu",
        "gpus": torch.cuda.device_count() if on_gpu else 0,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "nccl": nccl,
        "backend": ctx.backend,
        "threads_per_rank": torch.get_num_threads(),
        "load_1m": round(os.getloadavg()[0], 2),
    }
