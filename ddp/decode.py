"""Decoding a split once, by all ranks of a node together, and telling all ranks when one of them cannot."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ddp.context import DistContext
from ddp.mistake import Mistake
from ddp.source import Split

REPORT_S = 5.0
"""How often ranks tell each other that they are still at work; must be well below --timeout-s."""


def together(ctx: DistContext, work: Callable[[], Any]) -> list[Any]:
    """Do `work` on every rank -> what it returned on each, which must be JSON. Every rank must call this.

    Raises Mistake on all ranks if it did on one, so that none is left waiting.
    """
    answer, complaint = None, None
    try:
        answer = work()
    except Mistake as mistake:
        complaint = str(mistake)
    answers = ctx.gather([answer, complaint])
    for _, text in answers:
        if text is not None:
            raise Mistake(text)
    return [value for value, _ in answers]


def in_rounds(ctx: DistContext, steps: Iterator[object]) -> None:
    """Take all of this rank's steps, which may be none. Every rank must call this.

    Ranks report to each other every few seconds, so that one that has less to do, because its node has the images
    already, does not give up waiting for the others. Raises Mistake on all ranks if a step did on one.
    """

    def some() -> bool:
        deadline = time.monotonic() + REPORT_S
        return all(time.monotonic() < deadline for _ in steps)

    while not all(together(ctx, some)):
        pass


def decode_together(
    split: Split, indices: Iterable[int], put: Callable[[int, np.ndarray], None], ctx: DistContext
) -> None:
    """Read this rank's `indices` of a split and `put` each image, in rounds. Every rank must call this.

    Raises Mistake on all ranks if an image cannot be decoded.
    """

    def steps() -> Iterator[None]:
        for index in indices:
            put(index, split.read(index))
            yield

    in_rounds(ctx, steps())
