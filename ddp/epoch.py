"""One epoch of training steps: its sums, what a person sees of it, and the step edges at which it can stop."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ddp.guard import NonFiniteError, explain
from ddp.loader import Batch
from ddp.loop import train_steps
from ddp.progress import Monitor
from ddp.self_check import RanksDifferError, compare, replicated_state
from ddp.state import Progress
from ddp.stop import Stop
from ddp.trainer import Trainer


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


def check_ranks(trainer: Trainer, step: int) -> None:
    """Raise RanksDifferError on all ranks if state that must be equal is not. Every rank must call this."""
    config = trainer.config
    state = replicated_state(
        trainer.module, trainer.optimizer, trainer.scaler, trainer.scheduler, buffers=config.equal_buffers
    )
    if trainer.ema is not None:
        state = {**state, **{f"ema.{name}": average for name, average in trainer.ema.parameters.items()}}
    difference = compare(trainer.ctx, state)
    if difference is not None:
        raise RanksDifferError(step, difference)


class Meter:
    """Sums losses on the device; only `read` waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.samples = 0

    def add(self, loss_sum: Tensor, samples: int) -> None:
        """Add the losses of one step."""
        self.total += loss_sum
        self.samples += samples

    def read(self) -> float:
        """Mean loss over the samples added so far."""
        return float(self.total) / self.samples


class Epoch:
    """The open epoch of a run on one rank; counts `progress` forward."""

    def __init__(self, trainer: Trainer, monitor: Monitor, stop: Stop, progress: Progress) -> None:
        self.trainer, self.monitor, self.stop, self.progress = trainer, monitor, stop, progress
        self.sums, self._window = Meter(trainer.ctx.device), Meter(trainer.ctx.device)
        self.elapsed_s = 0.0
        self.stopped = False

    def state(self) -> dict[str, Any]:
        """This rank's sums, for a checkpoint."""
        return {"total": float(self.sums.total), "samples": self.sums.samples, "elapsed_s": self.elapsed_s}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo `state`."""
        self.sums.total.fill_(state["total"])
        self.sums.samples = state["samples"]
        self.elapsed_s = state["elapsed_s"]

    def train(self, batches: Iterable[Batch], save: Callable[[], None] | None = None) -> None:
        """Train on the batches, unless the ranks agree to stop; `save` is called every `checkpoint_every` steps."""
        config, ctx, progress = self.trainer.config, self.trainer.ctx, self.progress
        ctx.barrier()
        started = time.perf_counter()

        def after_step(batch: Batch, loss_sum: Tensor) -> bool:
            progress.step += 1
            progress.samples += batch.global_count
            for meter in (self.sums, self._window):
                meter.add(loss_sum, len(batch.indices))
            self.monitor.step(batch)
            if progress.step % config.log_every == 0:
                self._show()
                self._window = Meter(ctx.device)
            if config.check_every and progress.step % config.check_every == 0:
                check_ranks(self.trainer, progress.step)
            if save is not None and config.checkpoint_every and progress.step % config.checkpoint_every == 0:
                self.trainer.guard.flush()
                save()
            self.stopped = self.stop.agreed() or self.stop.steps == config.stop_after
            return self.stopped

        try:
            train_steps(self.trainer, batches, after_step)
            self.trainer.guard.flush()
        except NonFiniteError as error:
            raise NonFiniteLossError(explain(error, progress.step, ctx)) from None
        ctx.synchronize()
        self.elapsed_s += time.perf_counter() - started

    def _show(self) -> None:
        """Read the loss and the norm of the gradients, for which this rank waits for its device."""
        norm = self.trainer.grad_norm
        self.monitor.reading(
            self.progress.step,
            self._window.read(),
            float(self.trainer.scheduler.get_last_lr()[0]),
            None if norm is None else float(norm),
        )

    def result(self) -> dict[str, Any]:
        """Mean loss over all ranks, samples, and seconds of the slowest rank. Every rank must call this.

        Raises NonFiniteLossError on all ranks if training diverged.
        """
        parts = self.trainer.ctx.gather(self.state())
        samples = sum(part["samples"] for part in parts)
        loss = math.fsum(part["total"] for part in parts) / samples
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"expected a finite training loss, got {loss} in epoch {self.progress.epoch}; "
                "lower --lr, lengthen --warmup, or use --amp bf16 or off"
            )
        elapsed_s = max(part["elapsed_s"] for part in parts)
        return {"train_loss": loss, "train_samples": samples, "train_s": elapsed_s}
