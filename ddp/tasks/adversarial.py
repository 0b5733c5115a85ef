"""Adversarial training: a generator and a discriminator, which learn in turn."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch, Loader
from ddp.mistake import require
from ddp.noise import Use, normal
from ddp.precision import autocast
from ddp.source import Dataset, Shape
from ddp.task import Outcome, Phase, Task

if TYPE_CHECKING:
    from ddp.trainer import Trainer


def _noise(trainer: "Trainer", batch: Batch, use: Use) -> Tensor:
    """Noise for as many images as the batch has, a function of seed, step and sample: [N, noise_size].

    The schedule counts the steps, alike on all ranks, and a checkpoint holds it.
    """
    size: Any = trainer.module.get_submodule("generator").noise_size
    step = 0 if use is Use.EVALUATION else trainer.scheduler.last_epoch
    indices = batch.indices.to(batch.inputs.device)
    return normal(trainer.config.seed, step, indices, size, use).to(batch.inputs.dtype)


class Adversarial(Task):
    """Images [N, C, H, W] against made ones. Source: Goodfellow et al., "Generative adversarial nets", 2014.

    The model's children are `generator`, with an attribute `noise_size` and buffers `mean` and `std` that normalise
    what it makes as the data set's images are, and `discriminator`, which takes batches and gives each image a logit.
    """

    parts = ("generator", "discriminator")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """First the discriminator's update, then the generator's, against the new discriminator."""
        return (Phase(self._discriminator, "discriminator"), Phase(self._generator, "generator"))

    def check(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise Mistake for options that two networks in turn cannot have."""
        for flag, value in (("--mixup", config.augment.mixup), ("--cutmix", config.augment.cutmix)):
            require(not value, f"no {flag} for a GAN, which sees no labels", value, "omit it")
        require(len(dataset.shape) == 3 and not dataset.planes, "images for a GAN", dataset.shape, "choose other data")
        parallel = config.parallel
        for flag, asked in (
            # the discriminator is called without its wrapper in the generator's update, and buffers must not change
            # under a forward pass whose backward pass is to come
            ("--broadcast-buffers", parallel.broadcast_buffers),
            ("--static-graph", parallel.static_graph),
        ):
            require(not asked, f"no {flag} for a GAN, whose networks are wrapped each on its own", flag, "omit it")

    def make_loaders(
        self, config: TrainConfig, dataset: Dataset, ctx: DistContext, module: nn.Module
    ) -> tuple[Loader, Loader]:
        """The usual loaders; the generator is told how their images are normalised. Raises Mistake without one."""
        children = dict(module.named_children())
        require(
            all(name in children for name in self.parts),
            "a model with the parts generator and discriminator",
            ", ".join(children) or "none",
            "choose a GAN, such as --model dcgan-digits",
        )
        buffers = dict(children["generator"].named_buffers())
        for name, values in (("mean", dataset.mean), ("std", dataset.std)):
            with torch.no_grad():
                buffers[name].copy_(torch.tensor(values).view_as(buffers[name]))
        return super().make_loaders(config, dataset, ctx, module)

    def _discriminator(self, trainer: "Trainer", batch: Batch) -> Tensor:
        """Cross-entropy of a real and of a made image, added: [N]. No gradient reaches the generator.

        --label-smoothing lowers the target of real images only. Source: Salimans et al. 2016, section 3.4.
        """
        with torch.no_grad():
            made = trainer.module.get_submodule("generator")(_noise(trainer, batch, Use.DISCRIMINATOR))
        # in one forward pass of the wrapper: DDP counts on one for each backward pass
        real, fake = trainer.wrapped.get_submodule("discriminator")(batch.inputs, made).tensor_split(2)
        target = torch.full_like(real, 1 - trainer.config.optim.label_smoothing)
        return binary_cross_entropy_with_logits(real, target, reduction="none") + softplus(fake)

    def _generator(self, trainer: "Trainer", batch: Batch) -> Tensor:
        """-log of the probability that a made image is taken for real: [N].

        The gradient goes through the discriminator without its wrapper, which would wait for gradients of its own.
        """
        made = trainer.wrapped.get_submodule("generator")(_noise(trainer, batch, Use.GENERATOR))
        return softplus(-trainer.module.get_submodule("discriminator")(made))

    def random_batch(
        self, shape: Shape, classes: int, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normal images; the targets are not looked at."""
        return torch.randn(samples, *shape, generator=generator), torch.zeros(samples, dtype=torch.int64), None

    @torch.no_grad()
    def evaluate(self, trainer: "Trainer", loader: Loader) -> Outcome:
        """Both losses on the test images, with noise that is always the same; equal to the bit at any number of ranks.

        There is no score: neither loss says how good the images are. Raises RuntimeError if a sample was lost.
        """
        ctx, module = trainer.ctx, trainer.module
        module.eval()
        generate, judge = module.get_submodule("generator"), module.get_submodule("discriminator")
        rows: list[Tensor] = []
        counted = 0
        for batch in loader:
            with autocast(trainer.config.amp, ctx.device):
                real = judge(batch.inputs).float()
                fake = judge(generate(_noise(trainer, batch, Use.EVALUATION))).float()
            counted += len(batch.indices)
            losses = softplus(-real) + softplus(fake), softplus(-fake)
            rows.append(torch.stack([each.double().sum() for each in losses]))
        parts = ctx.gather({"samples": counted, "rows": torch.stack(rows).tolist() if rows else []})
        samples = sum(part["samples"] for part in parts)
        loader.check_counted(samples)
        discriminator, generator = (
            math.fsum(row[column] for part in parts for row in part["rows"]) / samples for column in range(2)
        )
        return Outcome(
            score=None,
            numbers={
                "test_discriminator_loss": discriminator,
                "test_generator_loss": generator,
                "test_samples": samples,
            },
            text=f"test loss of the discriminator {discriminator:.4f}, of the generator {generator:.4f}",
            curves={"discriminator_loss": discriminator, "generator_loss": generator},
        )


TASK = Adversarial()
