"""Reconstruction: a model gives its input back, through a narrow place; auto-encoders, plain and variational."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddp.config import TrainConfig
from ddp.loader import Batch, Loader
from ddp.mistake import require
from ddp.noise import Use, normal
from ddp.precision import autocast
from ddp.source import Dataset, Shape
from ddp.task import Outcome, Task

if TYPE_CHECKING:
    from ddp.trainer import Trainer

FIXED_POINT = 2.0**20
"""Units in which pixels are summed as whole numbers, so that the order does not matter; good for 2^40 samples."""


def outputs(result: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """What a model gave -> reconstruction, shaped `like` the input, and divergence [N] in nats, 0 of a plain one.

    Raises Mistake unless it is [N, ...] of the input's shape, or a dict of that as `out` and of `kl`, [N].
    """
    out, kl = (result["out"], result["kl"]) if isinstance(result, dict) else (result, None)
    require(
        isinstance(out, Tensor) and out.shape == like.shape,
        f"a reconstruction of shape {tuple(like.shape)}, that of the input",
        tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__,
        "choose an auto-encoder, such as --model autoencoder",
    )
    return out, like.new_zeros(len(like)) if kl is None else kl


def squared_errors(out: Tensor, inputs: Tensor) -> Tensor:
    """Squared error of each sample, averaged over its values. [N, ...] twice -> [N]."""
    return (out.to(inputs.dtype) - inputs).square().flatten(1).mean(1)


def sample_losses(out: Tensor, kl: Tensor, inputs: Tensor) -> Tensor:
    """Squared error, and 2 / values times the divergence: [N].

    Times values / 2 this is, but for a constant, the negative evidence lower bound with a Gaussian decoder of variance
    1 in units of the normalised input: sum((x - out)^2) / 2 + KL. Source: Kingma, Welling 2014, equation 10.
    """
    values = inputs[0].numel()
    return squared_errors(out, inputs) + kl.to(inputs.dtype) * (2 / values)


class _Sums:
    """What one rank adds up, on its device, batch by batch."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.samples = 0
        self.numbers: list[Tensor] = []
        """Of each batch: squared errors, divergences, squared values; summed over its samples, float64 [3]."""
        self.fixed = torch.zeros(math.prod(shape), dtype=torch.int64, device=device)
        """Sum of the inputs, in units of 1 / FIXED_POINT."""

    def add(self, out: Tensor, kl: Tensor, inputs: Tensor) -> None:
        """Count one batch."""
        self.samples += len(inputs)
        rows = inputs.flatten(1)
        each = squared_errors(out, inputs).double().sum() * rows.size(1), kl.double().sum()
        self.numbers.append(torch.stack([*each, rows.double().square().sum()]))
        self.fixed += (rows.double() * FIXED_POINT).round().long().sum(0)


class Reconstruction(Task):
    """Inputs [N, ...], normalised as the loader gives them, against what the model makes of them.

    A model with an attribute `noise_size` is given that many standard normal numbers for each sample in training, a
    function of seed, step and sample; in evaluation it is given none. The score is the share of the test inputs'
    squared distance from their own mean that is explained: 1 is perfect, 0 no better than the best fixed image.
    """

    metric = "explained"

    def check(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise Mistake for options of labels, which are not looked at."""
        for flag, value in (
            ("--label-smoothing", config.optim.label_smoothing),
            ("--mixup", config.augment.mixup),
            ("--cutmix", config.augment.cutmix),
        ):
            require(not value, f"no {flag} for an auto-encoder, which sees no labels", value, "omit it")

    def losses(self, trainer: "Trainer", batch: Batch) -> Tensor:
        """Squared error of each sample, and its divergence if the model has one."""
        inputs, size = batch.inputs, getattr(trainer.module, "noise_size", 0)
        if not size:
            return sample_losses(*outputs(trainer.forward(inputs), inputs), inputs)
        indices = batch.indices.to(inputs.device)
        noise = normal(trainer.config.seed, trainer.scheduler.last_epoch, indices, size, Use.LATENT)
        return sample_losses(*outputs(trainer.forward(inputs, noise.to(inputs.dtype)), inputs), inputs)

    def random_batch(
        self, shape: Shape, classes: int, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normal inputs; the targets are not looked at."""
        return torch.randn(samples, *shape, generator=generator), torch.zeros(samples, dtype=torch.int64), None

    @torch.no_grad()
    def evaluate(self, trainer: "Trainer", loader: Loader) -> Outcome:
        """Mean squared error and the share explained, the same to the bit at any number of ranks.

        Sums of whole batches, which are the same at any number of ranks, are rounded once; pixels are summed as whole
        numbers. Raises RuntimeError if a sample was lost or counted twice.
        """
        ctx, module = trainer.ctx, trainer.module
        module.eval()
        shape = loader.dataset.shape
        sums = _Sums(shape, ctx.device)
        for batch in loader:
            with autocast(trainer.config.amp, ctx.device):
                result = module(batch.inputs)
            sums.add(*outputs(result, batch.inputs), batch.inputs)
        rows = torch.stack(sums.numbers).tolist() if sums.numbers else []
        parts = ctx.gather({"samples": sums.samples, "rows": rows})
        samples = sum(part["samples"] for part in parts)
        loader.check_counted(samples)
        errors, divergences, squares = (
            math.fsum(row[column] for part in parts for row in part["rows"]) for column in range(3)
        )
        mean_image = [value / FIXED_POINT / samples for value in ctx.sum(sums.fixed).tolist()]
        fixed_image = squares - samples * math.fsum(value * value for value in mean_image)
        explained = 1 - errors / fixed_image if fixed_image > 0 else None
        error, kl = errors / samples / math.prod(shape), divergences / samples
        return Outcome(
            score=explained,
            numbers={"test_error": error, "test_kl": kl, "test_explained": explained, "test_samples": samples},
            text=f"test squared error {error:.4f}" + ("" if explained is None else f"  explained {explained:.2%}"),
            curves={"error": error, "kl": kl} | ({} if explained is None else {"explained": explained}),
        )


TASK = Reconstruction()
