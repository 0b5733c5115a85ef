"""Exact evaluation: every sample counts once and the result is the same to the bit at any number of ranks."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddp.context import DistContext
from ddp.loader import Loader
from ddp.mistake import require
from ddp.precision import Amp, autocast

TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """Sums over a whole split, so that they can be checked and compared exactly."""

    samples: int
    correct: int
    """Trace of `confusion`."""
    top5_correct: int | None
    """Samples whose class is among the five largest logits; None where so few classes make that say little."""
    confusion: tuple[tuple[int, ...], ...]
    """Samples [classes, classes]: rows are the truth, columns the prediction."""
    loss_sum: float

    @property
    def accuracy(self) -> float:
        """Share of samples whose largest logit is their class's."""
        return self.correct / self.samples

    @property
    def top5_accuracy(self) -> float | None:
        """Share of samples whose class is among the five largest logits."""
        return None if self.top5_correct is None else self.top5_correct / self.samples

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.samples


@dataclass
class _Tally:
    """What one rank counts; tensors stay on the device, so that no batch waits for it."""

    samples: int = 0
    outputs: int | None = None
    """Logits of a sample; None on a rank without batches."""
    losses: list[Tensor] = field(default_factory=list)
    pairs: list[Tensor] = field(default_factory=list)
    """Truth and prediction, int64 [N, 2]."""
    top5: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch. logits [N, classes], labels int64 [N]."""
        self.samples += len(labels)
        self.outputs = logits.shape[1]
        self.losses.append(cross_entropy(logits.float(), labels, reduction="none").double().sum())
        # Logits of half precision are often equal: a stable order makes the first class win, as argmax does.
        ranking = logits.sort(dim=1, descending=True, stable=True).indices
        self.pairs.append(torch.stack([labels, ranking[:, 0]], dim=1))
        self.top5.append((ranking[:, :TOP] == labels[:, None]).sum())

    def confusion(self, classes: int, device: torch.device) -> Tensor:
        """Truth against prediction, int64 [classes, classes]."""
        if not self.pairs:
            return torch.zeros(classes, classes, dtype=torch.int64, device=device)
        truth, prediction = torch.cat(self.pairs).unbind(1)
        return torch.bincount(truth * classes + prediction, minlength=classes**2).reshape(classes, classes)


@torch.no_grad()
def evaluate(module: nn.Module, loader: Loader, ctx: DistContext, amp: Amp) -> Evaluation:
    """Evaluate a model that is not wrapped, so that ranks may have different numbers of batches.

    The batches are the same at any number of ranks, and the sum of their losses is rounded once, so it does not depend
    on which rank computed which. Raises RuntimeError if a sample was lost or counted twice, Mistake if the model has
    not one logit for each of the data set's classes.
    """
    module.eval()
    tally, classes = _Tally(), len(loader.dataset.classes)
    for batch in loader:
        with autocast(amp, ctx.device):
            logits = module(batch.inputs)
        tally.add(logits, batch.targets)
    mine = {
        "losses": torch.stack(tally.losses).tolist() if tally.losses else [],
        "top5": int(torch.stack(tally.top5).sum()) if tally.top5 else 0,
        "samples": tally.samples,
        "outputs": tally.outputs,
    }
    parts = ctx.gather(mine)
    counted = sum(part["samples"] for part in parts)
    loader.check_counted(counted)
    for outputs in {part["outputs"] for part in parts} - {None}:  # all ranks know, so none waits in the sum below
        require(outputs == classes, f"a model with {classes} outputs", outputs, "make one for each class of the data")
    confusion = ctx.sum(tally.confusion(classes, ctx.device))
    return Evaluation(
        samples=counted,
        correct=int(confusion.trace()),
        top5_correct=sum(part["top5"] for part in parts) if classes > TOP else None,
        confusion=tuple(map(tuple, confusion.tolist())),
        loss_sum=math.fsum(loss for part in parts for loss in part["losses"]),
    )
