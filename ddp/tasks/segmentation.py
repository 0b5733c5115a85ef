"""Segmentation: a class for every pixel, cross-entropy or Dice loss, mean intersection over union (mIoU)."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch, Loader
from ddp.metrics import Confusion, accuracy, iou_report, mean_iou
from ddp.mistake import require
from ddp.precision import Amp, autocast
from ddp.segmentation_losses import global_dice, pixel_losses
from ddp.source import UNKNOWN, Dataset, Shape
from ddp.task import Outcome, Task

if TYPE_CHECKING:
    from ddp.trainer import Trainer

LARGEST_REPORT = 50
"""Classes up to which the report of every class is shown at the end of a run."""


def _truth(batch: Batch) -> Tensor:
    """Class of each pixel, int64 [N, H, W]; UNKNOWN where it is not known."""
    assert batch.masks is not None
    return batch.masks[:, 0].long()


class Segmentation(Task):
    """Logits [N, classes, H, W] against the classes in a plane of masks, 255 where they are unknown.

    In training, a model may give a dict of two such logits, out and aux, the second of an auxiliary head.
    """

    metric = "mIoU"

    def check(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise Mistake unless the data has a mask of classes, or for an option that would leave masks behind."""
        require(
            dataset.planes == 1 and dataset.train.labels.ndim == 1,
            "data with a class for each pixel for a model of segmentation",
            f"--data {config.input.data}",
            "choose other data such as shapes, or a model for that data",
        )
        for flag, value, why in (
            ("--mixup", config.augment.mixup, "pixels of a blend have no one class"),
            ("--cutmix", config.augment.cutmix, "labels, not masks, are blended"),
            ("--rotate", config.augment.rotate, "it would blend numbers of classes"),
            ("--resized-crop", config.augment.resized_crop, "it would blend numbers of classes"),
            ("--label-smoothing", config.optim.label_smoothing, "its losses know none"),
            ("--balance", config.input.balance, "a sample has many classes"),
        ):
            require(not value, f"no {flag} in segmentation, since {why}", value, "omit it")
        require(
            config.accumulate == 1 or config.segmentation.loss == "ce",
            "--accumulate 1 with the Dice loss, whose sums are over a whole batch",
            config.accumulate,
            "omit --accumulate, or use --loss ce",
        )

    def prepare(self, trainer: "Trainer", batch: Batch) -> Batch:
        """Weigh the sums over pixels so that the mean over all samples is the mean over all known pixels."""
        known = trainer.ctx.sum((_truth(batch) != UNKNOWN).sum())
        weight = batch.global_count / known.clamp(min=1).double()
        return replace(batch, weight=weight.expand(len(batch.indices)))

    def losses(self, trainer: "Trainer", batch: Batch) -> Tensor:
        """Loss of each sample; what an auxiliary head says counts less."""
        outputs = trainer.forward(batch.inputs)
        if isinstance(outputs, Tensor):
            return self._losses(trainer, batch, outputs)
        weight = trainer.config.segmentation.aux_weight
        return self._losses(trainer, batch, outputs["out"]) + weight * self._losses(trainer, batch, outputs["aux"])

    def _losses(self, trainer: "Trainer", batch: Batch, logits: Tensor) -> Tensor:
        truth, parts = _truth(batch), []
        if trainer.config.segmentation.loss != "dice":
            sums = pixel_losses(logits, truth).flatten(1).sum(1)
            assert batch.weight is not None
            parts.append(sums * batch.weight.to(sums.dtype))
        if trainer.config.segmentation.loss != "ce":
            parts.append(global_dice(logits, truth, trainer.ctx, batch.global_count))
        return torch.stack(parts).sum(0)

    def output_shape(self, shape: Shape, classes: int) -> tuple[int, ...]:
        """A logit for each class at each pixel."""
        return (classes, *shape[1:])

    def random_batch(
        self, shape: Shape, classes: int, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normal images [N, *shape] and uniform classes uint8 [N, 1, H, W]."""
        inputs = torch.randn(samples, *shape, generator=generator)
        masks = torch.randint(classes, (samples, 1, *shape[1:]), generator=generator, dtype=torch.uint8)
        return inputs, torch.zeros(samples, dtype=torch.int64), masks

    def evaluate(self, trainer: "Trainer", loader: Loader) -> Outcome:
        """mIoU, the share of pixels that are right, and the mean cross-entropy of the known pixels."""
        found = evaluate(trainer.module, loader, trainer.ctx, trainer.config.amp)
        classes = loader.dataset.classes
        pixels = sum(map(sum, found.confusion))
        loss = found.loss_sum / pixels if pixels else None
        score, right = mean_iou(found.confusion), accuracy(found.confusion)
        numbers = {"test_loss": loss, "test_miou": score, "test_pixel_accuracy": right}
        texts = ("n/a" if number is None else f"{number:.4f}" for number in numbers.values())
        curves = {"loss": loss, "mIoU": score, "pixel accuracy": right}
        return Outcome(
            score=score,
            numbers=numbers | {"test_pixels": pixels, "test_samples": found.samples},
            text="test loss {}  mIoU {}  pixel accuracy {}".format(*texts),
            curves={name: number for name, number in curves.items() if number is not None},
            confusion=found.confusion,
            report=iou_report(found.confusion, classes) if len(classes) <= LARGEST_REPORT else "",
        )


@dataclass(frozen=True)
class Evaluation:
    """Sums over a whole split, so that they can be checked and compared exactly."""

    samples: int
    confusion: Confusion
    """Known pixels [classes, classes]: rows are the truth, columns the prediction."""
    loss_sum: float
    """Cross-entropy of all known pixels in nats, rounded once."""


@dataclass
class _Tally:
    """What one rank counts, on its device."""

    confusion: Tensor
    """int64 [classes, classes]."""
    samples: int = 0
    outputs: int | None = None
    """Logits of a pixel; None on a rank without batches."""
    losses: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, truth: Tensor) -> None:
        """Count one batch. logits [N, classes, H, W], truth int64 [N, H, W]."""
        self.samples += len(truth)
        self.outputs = logits.shape[1]
        classes = len(self.confusion)
        if self.outputs != classes:
            return  # refused later, when all ranks know
        # Of each sample first: a sum over everything would depend on the number of threads.
        self.losses.append(pixel_losses(logits, truth).double().flatten(1).sum(1).sum())
        pairs = torch.where(truth == UNKNOWN, classes**2, truth * classes + logits.argmax(1))
        counts = torch.bincount(pairs.flatten(), minlength=classes**2 + 1)
        self.confusion += counts[:-1].reshape(classes, classes)


@torch.no_grad()
def evaluate(module: nn.Module, loader: Loader, ctx: DistContext, amp: Amp) -> Evaluation:
    """Evaluate a model that is not wrapped, so that ranks may have different numbers of batches.

    The result is the same to the bit at any number of ranks. Raises RuntimeError if a sample was lost or counted twice,
    Mistake if the model has not one logit for each of the data set's classes.
    """
    module.eval()
    classes = len(loader.dataset.classes)
    tally = _Tally(torch.zeros(classes, classes, dtype=torch.int64, device=ctx.device))
    for batch in loader:
        with autocast(amp, ctx.device):
            logits = module(batch.inputs)
        tally.add(logits, _truth(batch))
    losses = torch.stack(tally.losses).tolist() if tally.losses else []
    parts = ctx.gather({"losses": losses, "samples": tally.samples, "outputs": tally.outputs})
    counted = sum(part["samples"] for part in parts)
    loader.check_counted(counted)
    for outputs in {part["outputs"] for part in parts} - {None}:
        require(outputs == classes, f"a model with {classes} outputs", outputs, "make one for each class of the data")
    return Evaluation(
        samples=counted,
        confusion=tuple(map(tuple, ctx.sum(tally.confusion).tolist())),
        loss_sum=math.fsum(loss for part in parts for loss in part["losses"]),
    )


TASK = Segmentation()
