"""A failure is a record: why there is no measurement, written by the rank that knows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from bench.record import Record, append
from ddp.context import LOST_PEER
from ddp.epoch import NonFiniteLossError


def classify(error: BaseException) -> tuple[Literal["oom", "failed"], str]:
    """(status, one line) of an error."""
    lines = str(error).splitlines() or [""]
    out_of_memory = isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)
    return ("oom" if out_of_memory else "failed"), f"{type(error).__name__}: {lines[0]}"


@contextmanager
def recorded(out: Path | None, case: str, cell: dict[str, Any], environment: dict[str, Any]) -> Iterator[None]:
    """Write down an error of the block before it goes on.

    Not those that only say that another rank failed first, nor those that all ranks have and the caller tells.
    """
    try:
        yield
    except Exception as error:
        if (
            out is not None
            and not isinstance(error, NonFiniteLossError)
            and not any(words in str(error) for words in LOST_PEER)
        ):
            status, text = classify(error)
            append(out, Record(case=case, cell=cell, status=status, error=text, environment=environment))
        raise
