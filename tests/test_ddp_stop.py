"""The agreement to stop: the same step on every rank, soon, and without a message in every step."""

import signal
import time

import pytest

from ddp.context import DistContext
from ddp.stop import FIRST_STEPS, INTERVAL_S, LARGEST_PAUSE, Stop
from tests.ranks import run_ranks

STEP_S = 0.004


def stopped_at(world_size: int, signalled_after: int, rank: int) -> list[tuple[int, int]]:
    """(step of the agreement, messages sent) of every rank, if one rank is signalled after that step."""

    def work(ctx: DistContext) -> tuple[int, int]:
        stop, messages = Stop(ctx, 20), 0
        for step in range(1, signalled_after + 3 * LARGEST_PAUSE):
            time.sleep(STEP_S * (1 + ctx.rank % 2))  # ranks of unequal speed
            if step == signalled_after and ctx.rank == rank:
                stop.handle(signal.SIGTERM, None)
            before = stop._asked_at
            if stop.agreed():
                return step, messages
            messages += stop._asked_at != before
        return 0, messages

    return run_ranks(work, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("signalled_after", [1, FIRST_STEPS - 1])
def test_at_first_the_ranks_agree_one_step_later(world_size: int, signalled_after: int) -> None:
    found = stopped_at(world_size, signalled_after, world_size - 1)
    assert [step for step, _ in found] == [signalled_after + 1] * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_later_they_agree_on_the_same_step_within_the_interval_and_with_few_messages(world_size: int) -> None:
    """Breaks if a rank goes by its own time of a step: it then sends in another step, and ranks wait for ever."""
    signalled_after = 3 * FIRST_STEPS
    found = stopped_at(world_size, signalled_after, 0)
    assert len(set(found)) == 1
    step, messages = found[0]
    assert signalled_after < step <= signalled_after + INTERVAL_S / STEP_S + 2
    assert FIRST_STEPS <= messages < step - FIRST_STEPS
