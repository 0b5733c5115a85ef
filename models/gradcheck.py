"""Autograd against finite differences: whether a model's backward pass is the derivative of its forward pass.

For each parameter tensor, and for all of them together, the derivative of the loss along one random direction is taken
twice: as the product of autograd's gradient with the direction, and as (loss(w + h v) - loss(w - h v)) / 2h. All of it
in float64, where a step h of 1e-6 leaves about eight right digits.

ReLU and max pooling have kinks. A direction that carries a unit across one within the step gives a difference that is
no derivative: in a deep network, wrong by a thousandth or so. So a parameter is tried with steps down to a hundredth,
and along a second direction, before it counts as wrong; a wrong backward pass is wrong in all of them. A derivative
that is small against rounding errors is tried with a longer step as well, and is reported if it is small there too.

Normalisation is in training mode. Dropout in all its forms is off, and each pass starts from the same random numbers,
so that the loss is one function of the parameters.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.spec import ModelMistake, ModelSpec, Shape
from models.zoo import build

ALL = "all together"
STEPS, LONG_STEP = (1e-6, 1e-7, 1e-8), 1e-4
"""Steps h, in units of the direction, which is as long as the parameter itself, or of length 1 if that is more."""
DIRECTIONS = 2
COARSE = 0.1
"""Relative error up to which a difference at a smaller step, where it drowns in rounding errors, still is evidence."""
NOISE = 1e-14
"""Rounding error of a loss in float64, for a loss of 1; about 45 units in the last place."""
SIZES = (64, 96, 128, 160, 192)
"""Heights and widths tried, in pixels, for a model made for larger images: passes are many, and must be cheap."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison."""

    name: str
    shape: tuple[int, ...]
    autograd: float | None
    """Derivative along the direction from autograd; None if the loss does not depend on the parameter for autograd."""
    difference: float
    """The same from finite differences."""
    error: float
    """|autograd - difference| / the larger of both; less where both drown in rounding errors. inf if not finite."""
    measurable: bool
    """Whether the derivative stands out from rounding errors, so that a wrong one would be seen."""
    good: bool
    """Whether the parameter has a gradient and its error is within the tolerance."""


def smallest_build(spec: ModelSpec, image_size: int | None = None) -> tuple[nn.Module, Shape]:
    """The model at `image_size`, or else at its own size or the smallest of SIZES that it works on; a sample's shape.

    Raises ModelMistake if it does not work at that size.
    """
    if spec.task != "classification":
        raise ModelMistake(f"expected a classifier, got {spec.name}, a model for {spec.task}; choose a classifier")
    channels, height, width = spec.shape
    for size in SIZES if image_size is None and max(height, width) > SIZES[0] else ():
        try:
            return build(spec, (channels, size, size), spec.classes, (spec.classes,)), (channels, size, size)
        except (ModelMistake, AssertionError, ValueError):  # some of torchvision's assert the size that suits them
            continue
    shape = spec.shape if image_size is None else (channels, image_size, image_size)
    return build(spec, shape, spec.classes, (spec.classes,)), shape


def _prepare(module: nn.Module) -> None:
    """float64, and training mode but for leaves without parameters: of those, only the random ones have a mode."""
    module.double().train()
    for layer in module.modules():
        if not any(True for _ in layer.children()) and not any(True for _ in layer.parameters()):
            layer.eval()
        if isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0


def _loss_of(module: nn.Module, samples: tuple[Tensor, Tensor], seed: int) -> Tensor:
    """Mean cross entropy of (images, labels), float64 []; a function of the parameters and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cross_entropy(module(samples[0]), samples[1])


def _direction(parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Normally distributed; each part is as long as its parameter, or of length 1 if that is more."""
    parts = [torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in parameters]
    return [
        part * (max(1.0, float(each.detach().norm())) / float(part.norm()))
        for part, each in zip(parts, parameters, strict=True)
    ]


@torch.no_grad()
def _difference(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], direction: list[Tensor], step: float
) -> float:
    """Central difference of the loss along a direction; the parameters come back to what they were, to the last bit."""
    before = [parameter.clone() for parameter in parameters]
    values = []
    for signed in (step, -step):
        for parameter, old, part in zip(parameters, before, direction, strict=True):
            parameter.copy_(old).add_(part, alpha=signed)
        values.append(float(loss()))
    for parameter, old in zip(parameters, before, strict=True):
        parameter.copy_(old)
    return (values[0] - values[1]) / (2 * step)


@dataclass(frozen=True)
class _Checker:
    loss: Callable[[], Tensor]
    noise: float
    """Rounding error of one value of the loss."""
    tolerance: float
    seed: int

    def check(self, name: str, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Check:
        """The first attempt within the tolerance; else that with the smallest error that stands out from rounding."""
        tried = []
        for number in range(DIRECTIONS):
            direction = _direction(parameters, torch.Generator().manual_seed(self.seed + number))
            for step in STEPS:
                attempt = self._attempt(name, parameters, grads, (direction, step))
                if attempt.error <= self.tolerance and not attempt.measurable:
                    longer = self._attempt(name, parameters, grads, (direction, LONG_STEP))
                    attempt = longer if longer.error <= self.tolerance and longer.measurable else attempt
                tried.append(attempt)
                if attempt.error <= self.tolerance:
                    return attempt
        return min(tried, key=lambda attempt: (not attempt.measurable, attempt.error))

    def _attempt(
        self,
        name: str,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        along: tuple[list[Tensor], float],
    ) -> Check:
        """One comparison; `along`: direction and step."""
        direction, step = along
        pairs = zip(grads, direction, strict=True)
        autograd = sum(float((grad * part).sum()) for grad, part in pairs if grad is not None)
        difference = _difference(self.loss, parameters, direction, step)
        off, larger = abs(autograd - difference), max(abs(autograd), abs(difference))
        floor = self.noise / step / self.tolerance
        evidence = step >= STEPS[0] or off <= COARSE * larger
        error = off / max(larger, floor if evidence else 0.0)
        missing = all(grad is None for grad in grads)
        error = error if math.isfinite(error) else math.inf
        size = sum(each.numel() for each in parameters)
        return Check(
            name=name,
            shape=(size,) if name == ALL else tuple(parameters[0].shape),
            autograd=None if missing else autograd,
            difference=difference,
            error=error,
            measurable=larger >= floor,
            good=not missing and error <= self.tolerance,
        )


def check_gradients(
    module: nn.Module, shape: Shape, *, batch_size: int = 2, seed: int = 0, tolerance: float = 1e-4
) -> Iterator[Check]:
    """Check each parameter that is trained, then all together. Makes the module float64.

    Random samples of `shape`, and their classes, are drawn by `seed`. Raises ModelMistake if the model does not run in
    float64.
    """
    _prepare(module)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch_size, *shape, generator=generator, dtype=torch.float64)
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            classes = module(images).shape[1]
        samples = (images, torch.randint(classes, (batch_size,), generator=generator))
        value = _loss_of(module, samples, seed)
        grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    except RuntimeError as error:
        raise ModelMistake(
            f"expected a model that trains in float64 on the CPU, got an error ({str(error).splitlines()[0]}); "
            "let it take the type of its tensors from its input"
        ) from None
    noise = NOISE * max(1.0, abs(float(value.detach())))
    checker = _Checker(lambda: _loss_of(module, samples, seed), noise, tolerance, seed)
    for (name, parameter), grad in zip(named.items(), grads, strict=True):
        yield checker.check(name, [parameter], [grad])
    yield checker.check(ALL, list(named.values()), grads)
