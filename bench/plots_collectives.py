"""Pictures of collective operations: busbw against size, with the sizes that DDP sends marked."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.collective_bandwidth import DDP_CAPS_BYTES
from bench.section import Plot, Series
from bench.text import number

MOST_MARKS = 4
"""Bucket sizes that are marked."""
TICKS_KIB = (0.0078125, 0.0625, 0.5, 4.0, 32.0, 256.0, 2048.0, 16384.0, 131072.0)
"""Where the size axis is labelled: 8 B, 64 B, 512 B, 4 KiB, ..."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """busbw of one operation at its sizes, from the smallest to the largest."""

    op: str
    sizes_bytes: tuple[int, ...]
    busbw: tuple[float, ...]
    """Bytes per second."""
    spread: tuple[tuple[float, float], ...]
    """Of the slowest and of the fastest round."""


def busbw_plot(title: str, curves: Sequence[Curve], buckets: Sequence[int], model: str) -> Plot:
    """busbw in GB/s against S in KiB, both by doublings; `buckets` are sizes of a model's DDP buckets, in bytes."""
    series = [
        Series(
            label=curve.op,
            points=tuple((size / 2**10, rate / 1e9) for size, rate in zip(curve.sizes_bytes, curve.busbw, strict=True)),
            ranges=tuple((low / 1e9, high / 1e9) for low, high in curve.spread),
        )
        for curve in curves
    ]
    largest_kib = max(max(curve.sizes_bytes) for curve in curves) / 2**10
    smallest_kib = min(min(curve.sizes_bytes) for curve in curves) / 2**10
    rates = [rate / 1e9 for curve in curves for rate in curve.busbw]
    for size_bytes in marks(buckets):
        size_kib = size_bytes / 2**10
        label = f"{model}: bucket of {number(size_bytes / 2**20)} MiB" if buckets else _cap_label(size_bytes)
        if size_kib <= largest_kib:
            points = ((size_kib, min(rates)), (size_kib, max(rates)))
            series.append(Series(label=label, points=points, kind="mark"))
    return Plot(
        title=title,
        x_kib=True,
        x_label="size S",
        y_label="busbw, GB/s",
        series=tuple(series),
        note="Error bars: slowest and fastest round. Upright lines: sizes that DDP sends.",
        x_ticks=tuple(tick for tick in TICKS_KIB if smallest_kib <= tick <= largest_kib) or (smallest_kib,),
        log2_x=True,
        log2_y=True,
    )


def marks(buckets: Sequence[int]) -> list[int]:
    """Sizes to mark: DDP's limits where no buckets are known; at most MOST_MARKS, the smallest and largest kept."""
    known = sorted(set(buckets or DDP_CAPS_BYTES))
    if len(known) <= MOST_MARKS:
        return known
    last = len(known) - 1
    return [known[round(place * last / (MOST_MARKS - 1))] for place in range(MOST_MARKS)]


def _cap_label(size_bytes: int) -> str:
    which = "first bucket" if size_bytes == DDP_CAPS_BYTES[0] else "other buckets"
    return f"DDP's {which}, at most {size_bytes // 2**20} MiB"
