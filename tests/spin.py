"""A model whose step has a known amount of work, for comparisons whose truth is known."""

from pathlib import Path

import torch
from torch import Tensor, nn

SIZE = 16
FACTORY = """from tests.spin import Spin

def net(shape, classes):
    return Spin({units}, shape[0] * shape[1] * shape[2], classes)
"""


class Spin(nn.Module):
    """One layer that learns, behind so many products of matrices."""

    def __init__(self, units: int, features: int, classes: int) -> None:
        super().__init__()
        self.units = units
        self.layer = nn.Linear(features, classes)
        self.register_buffer("matrix", torch.eye(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for _ in range(self.units):
                torch.mm(self.matrix, self.matrix)
        output: Tensor = self.layer(x.flatten(1))
        return output


def spinning(folder: Path, units: int) -> str:
    """A file with a model of so much work -> the options that choose it."""
    path = folder / f"spin_{units}.py"
    path.write_text(FACTORY.format(units=units))
    return f"--model {path}:net"
