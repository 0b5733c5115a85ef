"""What a model says about itself, beside how it is built. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
"""Of one sample: channels, height, width of an image; steps, features of a sequence; features of a row of a table."""

Build = Callable[[Shape, int], "nn.Module"]
"""(shape of one sample, number of classes) -> a model from [N, *shape] to what its task expects: of a classifier,
logits [N, classes]."""


class ModelMistake(ValueError):
    """A model that does not exist or does not fit: one sentence says what was expected, what was got, what to do."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model that can be built for a data set's samples and classes."""

    name: str
    build: Build
    shape: Shape
    """Samples the model was made for; the default of data that has no size of its own."""
    classes: int
    """Classes the model was made for."""
    parameters: int | None
    """Number of parameters at `shape` and `classes`, from `source`; None if unknown."""
    source: str
    """Where the architecture is from."""
    task: str = "classification"
    """What it is trained to do: a file of ddp/tasks, which says what a batch, a loss and a score are."""


def model(
    *, shape: Shape, classes: int, parameters: int, source: str, task: str = "classification"
) -> Callable[[Build], ModelSpec]:
    """Make a model of a build function: `def resnet18_cifar(shape, classes)` becomes the model `resnet18-cifar`."""

    def decorate(build: Build) -> ModelSpec:
        return ModelSpec(
            name=build.__name__.replace("_", "-"),
            build=build,
            shape=shape,
            classes=classes,
            parameters=parameters,
            source=source,
            task=task,
        )

    return decorate
