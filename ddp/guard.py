"""Keeps gradients that are not finite away from the weights: all ranks stop before the update, and say where."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddp.context import DistContext
from ddp.loader import Batch

MOST_SAMPLES = 10
"""Samples that a message names at most."""


class NonFiniteError(RuntimeError):
    """A gradient became infinite or not a number; `explain` tells a person where."""

    def __init__(self, step: "GuardedStep", *, at_once: bool) -> None:
        super().__init__("gradients are not finite")
        self.step = step
        self.at_once = at_once
        """Whether the step is still open: it was not counted yet."""


@dataclass(frozen=True)
class GuardedStep:
    """What is known of a step before its update."""

    batch: Batch
    losses: Tensor
    """float32 [N], of this rank's samples."""


class Guard:
    """Asked before each update. On a CPU it answers at once; on a GPU it has the update left out there, without waiting
    for the device, and answers in the next step, when the device has long finished this one."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, deferred: bool) -> None:
        self.optimizer, self.deferred = optimizer, deferred
        self._waiting: tuple[GuardedStep, Tensor, torch.cuda.Event | None] | None = None

    def admit(self, norm: Tensor, batch: Batch, losses: Tensor) -> None:
        """Raise NonFiniteError on all ranks, now or in the next call, if the norm of all gradients is not finite.

        It is the same on every rank, since the gradients are.
        """
        step = GuardedStep(batch, losses)
        if not self.deferred:
            if not math.isfinite(norm.item()):
                raise NonFiniteError(step, at_once=True)
            return
        self.flush()
        # torch's fused optimizers leave their step out on the device when this is 1, as they do for a GradScaler.
        bad = 1 - torch.isfinite(norm).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self._waiting = (step, *_on_its_way(bad))

    def flush(self) -> None:
        """Wait for the answer that is still open, if there is one. Raises NonFiniteError."""
        if self._waiting is None:
            return
        (step, answer, arrived), self._waiting = self._waiting, None
        if arrived is not None:
            arrived.synchronize()
        if answer.item():
            raise NonFiniteError(step, at_once=False)


def _on_its_way(flag: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy of the flag on the CPU, and the event after which it may be read."""
    if flag.device.type != "cuda":
        return flag, None
    answer = torch.empty(flag.shape, dtype=flag.dtype, pin_memory=True)
    answer.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return answer, arrived


def can_defer(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether the device itself can leave an update out: a fused optimizer on a GPU."""
    return device.type == "cuda" and all(group.get("fused") for group in optimizer.param_groups)


def explain(error: NonFiniteError, steps: int, ctx: DistContext) -> str:
    """One sentence with step, ranks and samples, after so many counted steps. Every rank must call this."""
    step = steps + error.at_once
    losses = error.step.losses.tolist()
    ids = error.step.batch.indices.tolist()
    found = [[index, repr(loss)] for index, loss in zip(ids, losses, strict=True) if not math.isfinite(loss)]
    parts: list[Any] = ctx.gather([found, len(ids)])
    blame = [
        f"a loss of {bad[0][1]} on rank {rank} for {_listed([index for index, _ in bad])} of its {count} samples"
        for rank, (bad, count) in enumerate(parts)
        if bad
    ]
    got = " and ".join(blame) or "gradients that are not finite, though every loss is"
    return (
        f"expected finite losses and gradients in step {step}, got {got}; weights are as before that step: "
        "lower --lr, lengthen --warmup, add --clip-norm 1, or use --amp bf16 or off"
    )


def _listed(ids: list[int]) -> str:
    if len(ids) == 1:
        return f"number {ids[0]}"
    more = f" and {len(ids) - MOST_SAMPLES} more" if len(ids) > MOST_SAMPLES else ""
    return f"numbers {', '.join(map(str, ids[:MOST_SAMPLES]))}{more}"
