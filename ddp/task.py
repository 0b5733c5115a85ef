"""What a task is: what a batch is compared with, how that becomes losses, and how well a model does."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.data import make_loaders
from ddp.loader import Batch, Loader
from ddp.metrics import Confusion
from ddp.source import Dataset, Shape

if TYPE_CHECKING:
    from ddp.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """How well a model does on a whole split: the same on every rank, and to the last bit at any number of ranks."""

    score: float | None
    """What epochs are compared by; more is better. None: not known."""
    numbers: dict[str, Any]
    """For the epoch's record: plain numbers whose names begin with test_, test_samples among them."""
    text: str
    """For the epoch's line, such as `test loss 0.0812  test accuracy 97.22%`."""
    curves: dict[str, float] = field(default_factory=dict)
    """What TensorBoard shows under test/."""
    confusion: Confusion | None = None
    """Of classes, where there are any."""
    report: str = ""
    """What is said at the end of a run."""


@dataclass(frozen=True)
class Phase:
    """One update of a step. Most tasks have one; where two networks learn in turn, there are two."""

    losses: "Callable[[Trainer, Batch], Tensor]"
    """Loss of each of the batch's samples, [N]; calls `trainer.forward` or the parts of `trainer.wrapped`."""
    part: str | None = None
    """The child of the model whose weights this update changes; None: all of them."""


class Task:
    """What a model is trained to do; a file of ddp/tasks names its own as `TASK`."""

    metric: str = "score"
    """What the score is called, such as accuracy."""
    parts: tuple[str, ...] = ()
    """Children of the model that are wrapped each on its own; none: the model is wrapped as a whole."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The updates of one step, in their order."""
        return (Phase(self.losses),)

    def check(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise Mistake if options or data mean nothing to this task."""

    def losses(self, trainer: "Trainer", batch: Batch) -> Tensor:
        """Loss of each of this rank's samples, [N]; training follows the mean over the samples of all ranks."""
        raise NotImplementedError

    def prepare(self, trainer: "Trainer", batch: Batch) -> Batch:
        """The batch with what must be known of the whole step, before micro-batches are cut. Every rank calls this."""
        return batch

    def output_shape(self, shape: Shape, classes: int) -> tuple[int, ...] | None:
        """What a model must give for one sample in evaluation mode; None where that is not one tensor."""
        return None

    def random_batch(
        self, shape: Shape, classes: int, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs, targets and masks of samples without meaning, on the CPU, for benchmarks and passes for nothing."""
        raise NotImplementedError

    def make_loaders(
        self, config: TrainConfig, dataset: Dataset, ctx: DistContext, module: nn.Module
    ) -> tuple[Loader, Loader]:
        """Loaders of what is trained and what is tested on. Every rank must call this. Raises Mistake."""
        return make_loaders(config, dataset, ctx)

    def shown(self, score: float) -> str:
        """A score as a person reads it."""
        return f"{score:.4f}"

    def evaluate(self, trainer: "Trainer", loader: Loader) -> Outcome:
        """How well the model does, without its wrapper. Every rank must call this."""
        raise NotImplementedError


def random_step(
    task: Task, shape: Shape, classes: int, samples: int, ctx: DistContext, *, channels_last: bool = False
) -> Batch:
    """A batch without meaning on the device, different on every rank, of a step with as many samples on each.

    `channels_last` lays out images as --channels-last does; what is no image has no such layout.
    """
    generator = torch.Generator().manual_seed(ctx.rank)
    inputs, targets, masks = task.random_batch(shape, classes, samples, generator)
    inputs = inputs.to(ctx.device)
    if channels_last and inputs.ndim == 4:
        inputs = inputs.to(memory_format=torch.channels_last)
    return Batch(
        inputs=inputs,
        targets=targets.to(ctx.device),
        global_count=samples * ctx.world_size,
        indices=torch.arange(samples),
        masks=None if masks is None else masks.to(ctx.device),
    )
