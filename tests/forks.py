"""Children forked from the test process, which start in milliseconds, since torch is imported already."""

import gc
import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any


def start(target: Callable[..., None], *args: Any) -> ForkProcess:
    """Fork a child that calls `target(*args)`.

    It never collects garbage of this process. A process group is garbage in a cycle once a test with a group of its own
    has failed an operation; its destructor waits for threads, which a fork does not have: the child hangs or dies.
    """
    process = multiprocessing.get_context("fork").Process(target=_begin, args=(target, args))
    gc.disable()  # or the child might collect before it gets to _begin
    try:
        process.start()
    finally:
        gc.enable()
    return process


def _begin(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    gc.freeze()
    gc.enable()
    target(*args)
