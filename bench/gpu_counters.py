"""What NVML tells of a GPU: clocks, reasons for lower ones, heat, energy, other processes. Unknown is None."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class GpuCounters:
    """One GPU's counters, through pynvml."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def read(self) -> dict[str, Any]:
        """Counters as they are now."""
        nvml, handle = self._nvml, self._handle
        processes = self._known(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        reasons = self._known(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        if reasons is None:  # its name in older drivers and in pynvml before 12.535
            reasons = self._known(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return {
            "sm_mhz": self._known(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "throttle": reasons,
            "temperature_c": self._known(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            # In a container NVML may show pids of another namespace: then own ones are among the others.
            "other_processes": None if processes is None else max(0, len(processes) - 1),
            "energy_mj": self._known(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)),
        }

    def _known(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (AttributeError, self._nvml.NVMLError):  # pynvml or the driver does not know it
            return None


def by_uuid(uuid: str) -> GpuCounters | None:
    """The counters of the GPU with this id; None without pynvml, a driver, or such a GPU."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return GpuCounters(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"))
    except pynvml.NVMLError:
        return None


def counters_of(device: "torch.device") -> GpuCounters | None:
    """The counters of a device; None if it is no GPU, or as in `by_uuid`."""
    if device.type != "cuda":
        return None
    import torch

    return by_uuid(str(torch.cuda.get_device_properties(device).uuid))
