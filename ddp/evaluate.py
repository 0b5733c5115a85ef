"""Exact evaluation: every sample counts once and the result is the same to the bit at any number of ranks."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ddp.context import DistContext
from ddp.loader import Loader
from ddp.precision import Amp, autocast


@dataclass(frozen=True)
class Evaluation:
    """Sums over a whole split, so that they can be checked and compared exactly."""

    samples: int
    correct: int
    loss_sum: float

    @property
    def accuracy(self) -> float:
        """Share of samples whose largest logit is their class's."""
        return self.correct / self.samples

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.samples


@torch.no_grad()
def evaluate(module: nn.Module, loader: Loader, ctx: DistContext, amp: Amp) -> Evaluation:
    """Evaluate a model that is not wrapped, so that ranks may have different numbers of batches.

    The batches are the same at any number of ranks, and the sum of their losses is rounded once, so it does not depend
    on which rank computed which. Raises RuntimeError if a sample was lost or counted twice.
    """
    module.eval()
    losses, corrects, samples = [], [], 0
    for batch in loader:
        with autocast(amp, ctx.device):
            logits = module(batch.images)
        losses.append(cross_entropy(logits.float(), batch.labels, reduction="none").double().sum())
        corrects.append((logits.argmax(1) == batch.labels).sum())
        samples += len(batch.labels)
    mine = {
        "losses": torch.stack(losses).tolist() if losses else [],
        "correct": int(torch.stack(corrects).sum()) if corrects else 0,
        "samples": samples,
    }
    parts = ctx.gather(mine)
    counted = sum(part["samples"] for part in parts)
    if counted != len(loader.labels):
        raise RuntimeError(f"expected to evaluate {len(loader.labels)} samples once each, counted {counted}")
    return Evaluation(
        samples=counted,
        correct=sum(part["correct"] for part in parts),
        loss_sum=math.fsum(loss for part in parts for loss in part["losses"]),
    )
