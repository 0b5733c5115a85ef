"""Regression: numbers for each sample, mean squared error, R2."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddp.config import TrainConfig
from ddp.loader import Batch, Loader
from ddp.mistake import require
from ddp.numbers import check_numbers
from ddp.precision import autocast
from ddp.source import Dataset, Shape
from ddp.task import Outcome, Task

if TYPE_CHECKING:
    from ddp.trainer import Trainer


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared errors of each sample, [N, numbers of a sample]. Raises Mistake if there is not an output per target."""
    require(
        outputs.shape == targets.shape,
        f"outputs of the targets' shape, {tuple(targets.shape)}, for regression",
        tuple(outputs.shape),
        "choose a model that gives one number for each target",
    )
    wide = torch.promote_types(outputs.dtype, torch.float32)
    return (outputs.to(wide) - targets.to(wide)).square().flatten(1)


class Regression(Task):
    """Numbers [N, ...] against numbers of the same shape."""

    metric = "R2"

    def check(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise Mistake for data without numbers to predict, and for options that are about classes or images."""
        require(
            dataset.train.labels.dtype.kind == "f" and dataset.train.labels.ndim > 1 and not dataset.planes,
            "data with numbers to predict for regression",
            f"--data {config.input.data}, which has classes",
            "choose other data, or a classifier",
        )
        augment, smoothing = config.augment, config.optim.label_smoothing
        for flag, value, why in (
            ("--mixup", augment.mixup, "which blends classes"),
            ("--cutmix", augment.cutmix, "which blends classes"),
            ("--label-smoothing", smoothing, "which is about classes"),
            ("--balance", config.input.balance, "which is about classes"),
        ):
            require(not value, f"no {flag} with regression, {why}", value, "omit it")
        check_numbers(config, dataset)

    def losses(self, trainer: "Trainer", batch: Batch) -> Tensor:
        """Mean squared error over each sample's numbers."""
        return _squares(trainer.forward(batch.inputs), batch.targets).mean(1)

    def output_shape(self, shape: Shape, classes: int) -> tuple[int, ...]:
        """`classes` numbers; for a series [T, features], as many at every step."""
        return (shape[0], classes) if len(shape) == 2 else (classes,)

    def random_batch(
        self, shape: Shape, classes: int, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normal inputs [N, *shape] and normal targets."""
        inputs = torch.randn(samples, *shape, generator=generator)
        return inputs, torch.randn(samples, *self.output_shape(shape, classes), generator=generator), None

    @torch.no_grad()
    def evaluate(self, trainer: "Trainer", loader: Loader) -> Outcome:
        """R2 = 1 - SSE / SST over all numbers of the split; None if no target differs from the mean of its column.

        The batches are the same at any number of ranks, and the sum of theirs is rounded once, so it does not depend on
        which rank computed which. Raises RuntimeError if a sample was lost or counted twice.
        """
        trainer.module.eval()
        ctx, samples, sums = trainer.ctx, 0, []
        for batch in loader:
            with autocast(trainer.config.amp, ctx.device):
                outputs = trainer.module(batch.inputs)
            sums.append(_squares(outputs.double(), batch.targets).sum(1).sum())
            samples += len(batch.indices)
        parts = ctx.gather((samples, torch.stack(sums).tolist() if sums else []))
        counted = sum(count for count, _ in parts)
        loader.check_counted(counted)
        return _outcome(math.fsum(part for _, found in parts for part in found), loader.labels.numpy())


def _outcome(sse: float, targets: np.ndarray) -> Outcome:
    """From the sum of squared errors and all targets [samples, ..., outputs], which every rank holds.

    SST is taken about the mean of each output, so that R2 is that of several outputs weighted by their variance.
    """
    rows = targets.astype(np.float64).reshape(-1, targets.shape[-1])
    sst = math.fsum(((rows - rows.mean(axis=0)) ** 2).ravel())
    loss, score = sse / rows.size, 1 - sse / sst if sst else None
    return Outcome(
        score=score,
        numbers={"test_loss": loss, "test_sse": sse, "test_sst": sst, "test_samples": len(targets)},
        text=f"test loss {loss:.4f}  test R2 " + ("unknown" if score is None else f"{score:.4f}"),
        curves={"loss": loss} | ({} if score is None else {"R2": score}),
    )


TASK = Regression()
