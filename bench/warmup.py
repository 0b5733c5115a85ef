"""Warming up: steps that are not measured, until their times settle or a cap is hit, alike on all ranks."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.steady import settled
from ddp.context import DistContext

CHUNK = 5
"""Steps between two looks at whether step times have settled."""


def until_settled(
    run: Callable[[int], Sequence[float]], ctx: DistContext, *, least: int, cap_steps: int, cap_s: float
) -> dict[str, Any]:
    """Train at least `least` steps, until they settle or a cap is hit -> `warmup` of a record.

    `run` trains that many steps and returns the seconds of each on this rank; `cap_steps` is not below `least`. Every
    rank must call this.
    """
    step_s: list[float] = []
    started, over = time.perf_counter(), False
    while len(step_s) < least or not (over or settled(step_s)):
        own = list(run(min(CHUNK, cap_steps - len(step_s))))
        told = ctx.gather([own, time.perf_counter() - started])
        step_s += [max(times) for times in zip(*(times for times, _ in told), strict=True)]
        over = len(step_s) >= cap_steps or max(spent for _, spent in told) >= cap_s
    return {"steps": len(step_s), "capped": not settled(step_s), "step_s": step_s}
