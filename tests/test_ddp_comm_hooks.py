"""Compressed gradients: what they become, and that a run with PowerSGD goes on to the same bit."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp.comm_hooks import register
from ddp.context import DistContext
from ddp.parallel_config import ParallelConfig
from ddp.resume import settle_buckets
from ddp.trainer import Trainer
from tests.ranks import run_ranks
from tests.strategy_runs import SHAPE, config, largest_difference, train, trainer_for, weights

POWERSGD = {"comm_hook": "powersgd", "powersgd_start": 2, "bucket_cap_mb": 0.005}
"""Several buckets."""


@pytest.mark.parametrize(("hook", "digits", "ranks"), [("fp16", 11, 2), ("bf16", 8, 3)])
def test_halved_gradients_are_the_mean_rounded_to_16_bits(hook: str, digits: int, ranks: int) -> None:
    def gradients(name: str) -> list[dict[str, Tensor]]:
        chosen = config("ddp", {"comm_hook": name, "bucket_cap_mb": 0.005})
        return run_ranks(lambda ctx: weights(train(trainer_for(ctx, chosen), 0, 1)), ranks)

    exact, halved = gradients("none"), gradients(hook)
    for result in halved:
        assert largest_difference(result, halved[0]) == 0
    for name, grad in exact[0].items():
        if name.startswith("grad "):
            error = (halved[0][name] - grad).abs().max() / grad.abs().max()
            assert 0 < error < ranks * 2.0**-digits


def test_a_mean_that_fits_into_fp16_survives_where_one_gradient_does_not() -> None:
    def work(ctx: DistContext) -> float:
        layer = nn.Linear(1, 1, bias=False)
        model = DistributedDataParallel(layer, process_group=ctx.group)
        register(model, ParallelConfig(comm_hook="fp16"), ctx.group)
        model(torch.full((1, 1), 180000.0 if ctx.rank == 1 else 0.0)).sum().backward()
        assert layer.weight.grad is not None
        return float(layer.weight.grad)

    assert run_ranks(work, 3) == [pytest.approx(60000, rel=1e-3)] * 3


def stored(trainer: Trainer) -> bytes:
    """What a checkpoint would hold."""
    file = io.BytesIO()
    state = {
        "model": trainer.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "own": trainer.strategy.own_state(trainer.wrapped),
    }
    torch.save(state, file)
    return file.getvalue()


def resumed(ctx: DistContext, content: bytes, *, own: bool) -> Trainer:
    """A new trainer in that state."""
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    trainer = trainer_for(ctx, config("ddp", POWERSGD))
    settle_buckets(trainer, SHAPE, 5)
    trainer.strategy.load_model(trainer.module, state["model"])
    trainer.strategy.load_optimizer(trainer.module, trainer.optimizer, state["optimizer"])
    if own:
        trainer.strategy.load_own(trainer.wrapped, state["own"])
    return trainer


@pytest.mark.parametrize(
    ("ranks", "stop"),
    [pytest.param(2, 4, id="2 ranks"), pytest.param(3, 4, id="3 ranks"), pytest.param(3, 1, id="before it begins")],
)
def test_a_resumed_run_with_powersgd_goes_on_to_the_same_bit(ranks: int, stop: int) -> None:
    def unbroken(ctx: DistContext) -> tuple[bytes, dict[str, Tensor], list[int]]:
        trainer = train(trainer_for(ctx, config("ddp", POWERSGD)), 0, stop)
        content = stored(trainer)
        train(trainer, stop, 7)
        own = trainer.strategy.own_state(trainer.wrapped)["powersgd"]
        return content, weights(trainer), sorted(own["error"])

    whole = run_ranks(unbroken, ranks)
    assert len(whole[0][2]) > 1  # several buckets remember something

    def go_on(ctx: DistContext) -> dict[str, Tensor]:
        return weights(train(resumed(ctx, whole[ctx.rank][0], own=True), stop, 7))

    for result, (_, expected, _) in zip(run_ranks(go_on, ranks), whole, strict=True):
        assert largest_difference(result, expected) == 0

    def forgetful(ctx: DistContext) -> dict[str, Tensor]:
        return weights(train(resumed(ctx, whole[ctx.rank][0], own=False), stop, 7))

    assert largest_difference(run_ranks(forgetful, ranks)[0], whole[0][1]) > 1e-9  # so the comparison can fail


def test_powersgd_leaves_out_nothing_for_good_and_ranks_stay_equal() -> None:
    def work(ctx: DistContext) -> tuple[float, dict[str, Tensor]]:
        layer = nn.Linear(40, 40, bias=False)
        model = DistributedDataParallel(layer, process_group=ctx.group)
        state = register(model, ParallelConfig(comm_hook="powersgd", powersgd_start=2), ctx.group)
        assert state is not None
        inputs = torch.randn(40, 40, generator=torch.Generator().manual_seed(ctx.rank))
        total = torch.zeros(40, 40)
        for _ in range(6):
            layer.zero_grad()
            (model(inputs) * inputs).sum().backward()
            assert layer.weight.grad is not None
            total += layer.weight.grad
        left = ctx.mean(state.error_dict[0].clone()).view(40, 40)
        exact = ctx.mean(inputs.T @ inputs)
        return float((total + left - 6 * exact).abs().max() / exact.abs().max()), {"total": total, "left": left}

    (error, one), (_, other), _ = run_ranks(work, 3)
    assert error < 1e-5
    assert one["left"].abs().max() > 1  # it did leave something out so far
    assert torch.equal(one["total"], other["total"])


def test_powersgd_keeps_a_gradient_of_zero() -> None:
    def work(ctx: DistContext) -> bool:
        layer = nn.Linear(40, 40, bias=False)
        model = DistributedDataParallel(layer, process_group=ctx.group)
        register(model, ParallelConfig(comm_hook="powersgd", powersgd_start=2), ctx.group)
        for _ in range(4):
            layer.zero_grad()
            (model(torch.ones(2, 40)) * 0).sum().backward()
        assert layer.weight.grad is not None
        return bool((layer.weight.grad == 0).all())

    assert run_ranks(work, 2) == [True, True]
