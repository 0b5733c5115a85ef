"""Cells say what is measured: frozen dataclasses that import no torch, with a key that is the same on every machine."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal


def key_of(cell: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for a cell, as a record holds it."""
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration whose training steps are timed."""

    model: str
    ranks: int
    batch_per_rank: int
    """Samples per rank in a step."""
    strategy: str = "ddp"
    sync_bn: bool = False
    amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = False

    @property
    def global_batch(self) -> int:
        """Samples of all ranks together in a step."""
        return self.ranks * self.batch_per_rank

    @property
    def key(self) -> str:
        """What stands for this cell in records."""
        return key_of(asdict(self))
