"""What devices can do at most: peaks by the exact name that torch tells. An unknown device has none."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PEAK_TFLOP_PER_S: dict[str, dict[str, float]] = {
    "NVIDIA A100-SXM4-40GB": {"off": 19.5, "bf16": 312, "fp16": 312},
    "NVIDIA A100-SXM4-80GB": {"off": 19.5, "bf16": 312, "fp16": 312},
    "NVIDIA A100-PCIE-40GB": {"off": 19.5, "bf16": 312, "fp16": 312},
    "NVIDIA A100 80GB PCIe": {"off": 19.5, "bf16": 312, "fp16": 312},
    "NVIDIA H100 80GB HBM3": {"off": 66.9, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA H100 PCIe": {"off": 51.2, "bf16": 756, "fp16": 756},
    "NVIDIA H200": {"off": 66.9, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA L4": {"off": 30.3, "bf16": 121, "fp16": 121},
    "NVIDIA L40S": {"off": 91.6, "bf16": 362, "fp16": 362},
    "Tesla T4": {"off": 8.1, "fp16": 65},
    "Tesla V100-SXM2-16GB": {"off": 15.7, "fp16": 125},
    "Tesla V100-SXM2-32GB": {"off": 15.7, "fp16": 125},
}
"""Device -> --amp -> 1e12 FLOP/s, dense, without TF32, which is off by default. Source: NVIDIA's data sheets."""
SIZE, PRODUCTS = 8192, 20
"""Of the square matrices whose product measures the ceiling, and how many are timed at once."""


def peak_flop_per_s(device: Any, amp: Any) -> float | None:
    """What one device can do at most in that precision; None for any name or precision that is not in the table."""
    peak = PEAK_TFLOP_PER_S.get(str(device), {}).get(str(amp))
    return None if peak is None else peak * 1e12


def mfu(flop_per_sample: float | None, samples_per_s: float, ranks: int, peak: float | None) -> float | None:
    """Model FLOP utilisation: useful FLOP/s over what all devices can do; None if anything is unknown.

    Source: MLPerf training rules, appendix on utilisation.
    """
    if flop_per_sample is None or not peak or ranks < 1:
        return None
    return flop_per_sample * samples_per_s / (ranks * peak)


def matmul_ceiling_flop_per_s(device: "torch.device", amp: str) -> float | None:
    """What a product of large matrices reaches on this GPU, best of three; None where the peak is not known either."""
    import torch

    from ddp.precision import DTYPES

    if device.type != "cuda" or peak_flop_per_s(torch.cuda.get_device_name(device), amp) is None:
        return None
    left, right = (torch.randn(SIZE, SIZE, device=device, dtype=DTYPES.get(amp, torch.float32)) for _ in range(2))
    out = left @ right
    best_s = float("inf")
    for _ in range(3):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=out)
        torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - started)
    return PRODUCTS * 2 * SIZE**3 / best_s
