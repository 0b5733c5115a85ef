"""`ringmark gradcheck`: a model's gradients against finite differences, in float64 on the CPU."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from bench.text import clean, plural
from ddp.mistake import require
from launch.argv import parse
from models import zoo

if TYPE_CHECKING:
    from models.gradcheck import Check

WRONG = 1
"""Exit code: a parameter whose gradient is missing or is not the derivative of the loss."""


@dataclass(frozen=True, kw_only=True)
class GradcheckOptions:
    """Which model is checked, and how closely."""

    model: str = "resnet18-cifar"
    """Model: a name from `ringmark list models`, or path/to/file.py:factory."""
    batch_size: int = 2
    """Random samples that the loss is the mean of."""
    image_size: int | None = None
    """Height and width of the samples; by default the model's own, or the first of 64, 96, ... that it works on."""
    seed: int = 0
    """Seed of weights, samples and directions."""
    tolerance: float = 1e-4
    """Largest relative error of a derivative; without kinks near the weights, 1e-7 is usual."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "--batch-size of at least 2", self.batch_size, "BatchNorm needs two samples")
        require(
            self.image_size is None or self.image_size >= 1, "--image-size of at least 1", self.image_size, "try 32"
        )
        require(0 < self.tolerance < 1, "--tolerance in (0, 1)", self.tolerance, "try 1e-4")


def gradcheck(argv: Sequence[str]) -> int:
    """Check a model, print a line for each parameter and what was found -> 0 if all are right, 1 if not."""
    description = "Compare a model's gradients with finite differences of its loss, along a random direction for each."
    options = parse(GradcheckOptions, argv, prog="ringmark gradcheck", description=description)
    zoo.check_name(options.model)

    import torch

    from models.gradcheck import check_gradients, smallest_build

    spec = zoo.find(options.model)
    torch.manual_seed(options.seed)
    module, shape = smallest_build(spec, options.image_size)
    checks = check_gradients(
        module, shape, batch_size=options.batch_size, seed=options.seed, tolerance=options.tolerance
    )
    errors = Console(stderr=True)
    total = sum(parameter.requires_grad for parameter in module.parameters()) + 1
    done = list(track(checks, "checking", total, console=errors, transient=True, disable=not errors.is_terminal))
    print(f"{spec.name}: {options.batch_size} samples of {'x'.join(map(str, shape))} in float64, seed {options.seed}")
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(_table(done))
    return _verdict(done, options.tolerance)


def _error(check: "Check") -> str:
    return f"{check.error:.1e}" if math.isfinite(check.error) else "not finite"


def _table(checks: "Sequence[Check]") -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("parameter", "shape", "autograd", "finite difference", "relative error", ""):
        table.add_column(heading, justify="left" if heading in ("parameter", "") else "right", overflow="fold")
    for check in checks:
        table.add_row(
            Text(clean(check.name)),
            "x".join(map(str, check.shape)) or "1",
            "none" if check.autograd is None else f"{check.autograd:.6e}",
            f"{check.difference:.6e}",
            _error(check) if check.measurable else f"{_error(check)} (in noise)",
            "" if check.good else "WRONG",
            style="" if check.good else "bold red",
        )
    return table


def _verdict(checks: "Sequence[Check]", tolerance: float) -> int:
    """Print what was found -> the exit code."""
    *single, together = checks
    wrong = sorted((check for check in single if not check.good), key=lambda check: check.error, reverse=True)
    wrong += [] if together.good else [together]  # last, as it names no parameter
    missing = [clean(check.name) for check in wrong if check.autograd is None]
    hidden = [clean(check.name) for check in checks if not check.measurable and check.good]
    if wrong:
        worst = wrong[0]
        print(
            f"{len(wrong)} of {len(checks)} comparisons fail at a tolerance of {tolerance:g}; the worst is "
            f"{clean(worst.name)}, relative error {_error(worst)}"
        )
    else:
        largest = max(checks, key=lambda check: check.error)
        print(
            f"all {plural(len(checks), 'comparison')} agree within {tolerance:g}; the largest relative error is "
            f"{_error(largest)}, of {clean(largest.name)}"
        )
    if missing:
        print(f"no gradient, because the loss does not depend on them: {', '.join(missing)}")
    if hidden:
        print(f"too small to be told from rounding errors, so not shown to be right: {', '.join(hidden)}")
    return WRONG if wrong else 0
