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
    """File of weights to start from, as written to model.pt; only tensors are read from it."""
    download_weights: str | None = None
    """Start from torchvision's weights of this model, by their name or DEFAULT; they are downloaded into torch.hub's
    cache unless they are there."""
    new_head: bool = False
    """Take from the weights only what fits, and start a last layer of other classes anew."""
    freeze: tuple[str, ...] = ()
    """Beginnings of the names of parts that are not trained, such as conv1,layer1; their BatchNorm stands still.
    backbone: all but the last layer; none: nothing."""

    def __post_init__(self) -> None:
        given = self.weights is not None or self.download_weights is not None
        require(
            self.weights is None or self.download_weights is None,
            "--weights or --download-weights",
            "both",
            "omit one of them",
        )
        require(
            given or not self.new_head,
            "--weights or --download-weights with --new-head",
            "none",
            "name the weights, or omit --new-head",
        )
        require(
            self.init == "default" or not given or self.new_head,
            "--init or weights, or both with --new-head",
            f"--init {self.init} with weights that replace all that it draws",
            "omit one of them",
        )
        require(
            all(self.freeze),
            "names of parts in --freeze, separated by single commas",
            ",".join(self.freeze) or "an empty one",
            "give such as conv1,layer1",
        )
        require(
            "none" not in self.freeze or self.freeze == ("none",),
            "names of parts or none in --freeze",
            ",".join(self.freeze),
            "omit none, or all else",
        )
