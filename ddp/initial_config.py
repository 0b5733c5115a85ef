"""Options of where weights start from, and which of them are trained. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddp.mistake import require


@dataclass(frozen=True, kw_only=True)
class InitialConfig:
    """Which weights training starts from, and which it leaves alone."""

    init: Literal[
        "default",
        "xavier-uniform",
        "xavier-normal",
        "kaiming-uniform",
        "kaiming-normal",
        "orthogonal",
        "trunc-normal",
        "normal",
    ] = "default"
    """Initialiser of the weights of linear and convolutional layers; default: what the model's own code does."""
    weights: Path | None = None
    """File of weights to start from, as written to model.pt."""
    new_head: bool = False
    """Take from --weights only what fits, and start a last layer of other classes anew."""
    freeze: tuple[str, ...] = ()
    """Beginnings of the names of parts that are not trained, such as conv1,layer1; their BatchNorm stands still."""

    def __post_init__(self) -> None:
        require(
            self.weights is not None or not self.new_head,
            "--weights with --new-head",
            "none",
            "name the file of weights, or omit --new-head",
        )
        require(
            self.init == "default" or self.weights is None or self.new_head,
            "--init or --weights, or both with --new-head",
            f"--init {self.init} with --weights, which replace all that it draws",
            "omit one of them",
        )
        require(
            all(self.freeze),
            "names of parts in --freeze, separated by single commas",
            ",".join(self.freeze) or "an empty one",
            "give such as conv1,layer1",
        )
