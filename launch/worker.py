"""What every worker entry does around its work: who am I, is it a person's mistake, and one exit code."""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from ddp.env import RankInfo, read_rank
from ddp.mistake import Mistake, MistakeOfAll
from launch.argv import UsageError, fail
from launch.reporter import last_words, reporter
from launch.victims import VICTIM_WAIT_S, is_victim
from models.spec import ModelMistake

if TYPE_CHECKING:
    from ddp.context import DistContext


MISTAKE_WAIT_S = 30.0
"""How long the other ranks wait to be ended: whoever ends first makes the launcher end rank 0, which is to speak."""


def run_worker(prepare: Callable[[RankInfo], Callable[[], int]]) -> int:
    """Run a worker in two parts and return its exit code.

    `prepare(info)` reads flags and checks them, alike on every rank: of its mistakes only rank 0 speaks. The function
    it returns does the work, where a mistake (a broken image, say) may be one rank's alone: that rank speaks.
    """
    rank = os.environ.get("RANK", "0")
    try:
        work = prepare(read_rank(os.environ))
    except (UsageError, Mistake, ModelMistake) as error:
        return _fail_together(rank, error)
    try:
        return work()
    except MistakeOfAll as error:
        return _fail_together(rank, error)
    except (Mistake, ModelMistake) as error:
        return fail(f"rank {rank}: {error}")
    except KeyboardInterrupt:
        return 130


def _fail_together(rank: str, error: Exception) -> int:
    """Rank 0 tells. The others wait to be ended, and tell as well if they are not."""
    if rank == "0":
        return fail(error)
    time.sleep(MISTAKE_WAIT_S)
    return fail(f"rank {rank}: {error}")


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run an entry and end the process with its exit code, without Python's teardown.

    In the teardown a thread of the communication library can ask for the interpreter that is going away, and the
    process aborts after all its work is done; it also takes a few tenths of a second in every rank.
    """
    speaker = reporter(os.environ)
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException as error:
        words = last_words(error)
        if speaker is not None:
            speaker.words(words)
        traceback.print_exc()
        sys.stderr.flush()
        if is_victim(words.type, words.message):
            time.sleep(VICTIM_WAIT_S)
        code = 1
    if code == 0 and speaker is not None:
        speaker.tell("finished", {})
    for child in multiprocessing.active_children():
        child.kill()  # loader processes ignore what is gentler
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def said_once(ctx: "DistContext", mistake: Exception | None) -> bool:
    """Whether any rank made a mistake; rank 0 tells the first. Every rank must call this."""
    mistakes = [text for text in ctx.gather(None if mistake is None else str(mistake)) if text is not None]
    if mistakes and ctx.is_main:
        fail(mistakes[0])
    return bool(mistakes)
