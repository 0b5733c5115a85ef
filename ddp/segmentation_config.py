"""Options of segmentation. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Literal

from ddp.mistake import require


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """How a class for every pixel is learnt."""

    loss: Literal["ce", "dice", "ce-dice"] = "ce"
    """Cross-entropy of the pixels, Dice loss of the classes, or the sum of both."""
    aux_weight: float = 0.4
    """What the loss of an auxiliary head counts, beside that of the head itself, in models that have one."""

    def __post_init__(self) -> None:
        require(
            self.aux_weight >= 0 and math.isfinite(self.aux_weight),
            "a finite --aux-weight of at least 0",
            self.aux_weight,
            "try 0.4",
        )
