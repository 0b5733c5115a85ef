"""Work that the ranks of a node share: all of it is done, and a mistake of one is told to all in its round."""

from collections.abc import Iterator

import pytest

from ddp import decode
from ddp.context import DistContext
from ddp.decode import in_rounds, together
from ddp.mistake import Mistake
from tests.ranks import run_ranks


@pytest.mark.parametrize("report_s", [0.0, 5.0])
def test_ranks_with_more_and_with_less_to_do_all_do_it_once(report_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "REPORT_S", report_s)

    def work(ctx: DistContext) -> list[int]:
        done: list[int] = []
        in_rounds(ctx, (done.append(number) for number in range(3 * ctx.rank)))
        return done

    assert run_ranks(work, 3) == [[], [0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_a_mistake_ends_the_work_of_all_ranks_in_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "REPORT_S", 0.0)  # a round for each step

    def work(ctx: DistContext) -> list[int]:
        done: list[int] = []

        def steps() -> Iterator[None]:
            for number in range(100):
                if (ctx.rank, number) == (1, 4):
                    raise Mistake("expected this, got that; do so")
                yield done.append(number)

        with pytest.raises(Mistake, match="expected this, got that; do so"):
            in_rounds(ctx, steps())
        return done

    assert run_ranks(work, 3) == [[0, 1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_answers_come_from_all_ranks_in_their_order() -> None:
    assert run_ranks(lambda ctx: together(ctx, lambda: [ctx.rank, "x"]), 3) == [[[0, "x"], [1, "x"], [2, "x"]]] * 3
