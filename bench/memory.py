"""Peak memory of a piece of work: of the device on a GPU, else of the process."""

import ctypes
import gc
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_PEAK = "5"
"""What makes Linux set the peak resident set to what is resident now. Source: proc(5), /proc/pid/clear_refs."""


def _resident_bytes(field: str) -> int:
    """VmRSS, what is resident now, or VmHWM, its peak."""
    lines = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(next(lines).split()[1]) * 1024


class PeakMemory:
    """How much memory came on top of what was in use when this was made; `restart` forgets the peak so far.

    Unknown where the system does not tell. On a CPU it counts everything of the process: weights, gradients, state of
    the optimizer, activations, buffers of the communication library.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            self.before = torch.cuda.memory_allocated(device)
            return
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, or it would look like in use
            self.before = _resident_bytes("VmRSS")
        except (OSError, AttributeError, StopIteration):
            self.before = -1
        self.restart()

    def restart(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            CLEAR_REFS.write_text(FORGET_PEAK)
        except OSError:
            self.before = -1

    def bytes(self) -> int | None:
        """Peak since the last restart, beyond what was in use before."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.before
        return None if self.before < 0 else max(0, _resident_bytes("VmHWM") - self.before)
