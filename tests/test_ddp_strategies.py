"""Every strategy trains what one process trains on the whole batches, and hands its state to every other."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ddp.context import DistContext
from ddp.mistake import Mistake
from ddp.strategies.fsdp2 import STRATEGY as FSDP2
from ddp.strategies.fsdp2 import units
from ddp.strategy import Strategy
from ddp.trainer import Trainer, make_trainer
from tests.ranks import run_ranks
from tests.strategy_runs import SHAPE, config, largest_difference, net, train, trainer_for, weights

STEPS = 3


def trained(
    strategy: str, ranks: int, parallel: dict[str, Any] | None = None, **options: Any
) -> list[dict[str, Tensor]]:
    """The model of every rank after a few steps of unequal shares."""
    chosen = config(strategy, parallel, **options)
    return run_ranks(lambda ctx: weights(train(trainer_for(ctx, chosen), 0, STEPS)), ranks)


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle layer of the test's model is a unit of fsdp2, the others stay with the root."""
    monkeypatch.setattr("ddp.strategies.fsdp2.SMALLEST_UNIT", 1000)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """What one process makes of the whole batches."""
    return trained("single", 1)[0]


@pytest.mark.parametrize(
    ("strategy", "ranks", "parallel", "options"),
    [
        pytest.param("dp", 1, {}, {}, id="dp"),
        pytest.param("ddp-spawn", 2, {}, {}, id="ddp-spawn"),
        pytest.param("ddp", 2, {"bucket_cap_mb": 0.005, "gradient_as_bucket_view": False}, {}, id="small buckets"),
        pytest.param("ddp", 3, {"static_graph": True, "broadcast_buffers": True}, {}, id="static graph"),
        pytest.param("ddp", 3, {"find_unused_parameters": True}, {"accumulate": 2}, id="unused parameters"),
        pytest.param("fsdp2", 1, {}, {}, id="fsdp2, 1 rank"),
        pytest.param("fsdp2", 2, {}, {"accumulate": 2}, id="fsdp2, 2 ranks, micro-batches"),
        pytest.param("fsdp2", 3, {}, {}, id="fsdp2, 3 ranks"),
        pytest.param("fsdp2", 4, {}, {}, id="fsdp2, 4 ranks"),
    ],
)  # fmt: skip
def test_a_strategy_trains_what_one_process_trains(
    expected: dict[str, Tensor], strategy: str, ranks: int, parallel: dict[str, Any], options: dict[str, Any]
) -> None:
    for result in trained(strategy, ranks, parallel, **options):
        assert largest_difference(result, expected) < 1e-10


@pytest.mark.parametrize(("ranks", "atol"), [(2, 0), (3, 1e-14), (4, 1e-14)])  # sums of 3 depend on the buckets
def test_a_static_graph_trains_the_same_and_micro_batches_are_refused_with_it(ranks: int, atol: float) -> None:
    """T4. Breaks if a static graph loses gradients, or if ranks begin with one inside no_sync, where DDP fails."""
    plain, static = (trained("ddp", ranks, {"static_graph": choice}) for choice in (False, True))
    for one, other in zip(plain, static, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=atol)

    def work(ctx: DistContext) -> None:
        with pytest.raises(Mistake, match="expected --accumulate 1 with --static-graph"):
            train(trainer_for(ctx, config("ddp", {"static_graph": True}, accumulate=2)), 0, 1)

    run_ranks(work, ranks)


def test_ddp_gets_the_options() -> None:
    def work(ctx: DistContext) -> list[Any]:
        chosen = {"bucket_cap_mb": 3, "static_graph": True, "broadcast_buffers": True, "gradient_as_bucket_view": False}
        found = []
        for parallel in (chosen, {"find_unused_parameters": True}):
            wrapped = trainer_for(ctx, config("ddp", parallel)).wrapped
            names = ("static_graph", "broadcast_buffers", "gradient_as_bucket_view", "find_unused_parameters")
            found.append([getattr(wrapped, "bucket_bytes_cap", None), *(getattr(wrapped, name) for name in names)])
        return found

    chosen, default = run_ranks(work, 2)[0]
    assert chosen == [3 * 2**20, True, True, False, False]
    assert default == [25 * 2**20, False, False, True, True]


def test_fsdp2_shards_the_weights_and_starts_from_those_of_rank_0() -> None:
    def work(ctx: DistContext) -> tuple[list[int], dict[str, Tensor]]:
        module = net()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(ctx.rank)
        trainer = make_trainer(module, config("fsdp2"), ctx, 10)
        assert [type(each).__name__ for each in trainer.module.modules()].count("FSDPLinear") == 1
        held = [each.to_local().numel() for each in trainer.module.parameters() if isinstance(each, DTensor)]
        return held, FSDP2.model_state(trainer.module)

    results = run_ranks(work, 3)
    sizes = [parameter.numel() for parameter in net().parameters()]
    assert [sum(parts) for parts in zip(*(held for held, _ in results), strict=True)] == sizes
    assert all(held[2] <= sizes[2] / 3 + 40 for held, _ in results)
    for _, state in results:
        torch.testing.assert_close(state, dict(net().state_dict()), rtol=0, atol=0)


def test_ranks_of_fsdp2_may_evaluate_different_numbers_of_batches() -> None:
    def work(ctx: DistContext) -> bool:
        trainer = trainer_for(ctx, config("fsdp2"))
        images = torch.ones(2, *SHAPE, dtype=torch.float64)
        good = True
        for step in range(2):
            reference = net()
            reference.load_state_dict(trainer.strategy.model_state(trainer.module))
            with trainer.strategy.evaluating(trainer.module), torch.no_grad():
                outputs = [trainer.module(images) for _ in range(3 * ctx.rank)]
            good = good and all(torch.equal(each, reference(images)) for each in outputs)
            good = good and all(isinstance(each, DTensor) for each in trainer.module.parameters())
            train(trainer, step, step + 1)
        return good

    assert run_ranks(work, 3) == [True, True, True]


def test_gradients_of_fsdp2_stay_on_their_rank_until_they_are_to_be_sent() -> None:
    def work(ctx: DistContext) -> bool:
        trainer = trainer_for(ctx, config("fsdp2"))
        images = torch.ones(2, *SHAPE, dtype=torch.float64)
        with trainer.strategy.without_communication(trainer.wrapped):
            trainer.wrapped(images).sum().backward()
        kept = all(parameter.grad is None for parameter in trainer.module.parameters())
        trainer.wrapped(images).sum().backward()
        sent = all(parameter.grad is not None for parameter in trainer.module.parameters())
        return kept and sent

    assert run_ranks(work, 2) == [True, True]


def test_an_optimizer_computes_in_its_own_way_whatever_wrote_its_state() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    saved = torch.optim.SGD(parameters, lr=0.5, foreach=True).state_dict()
    fused = torch.optim.SGD(parameters, lr=0.1, fused=True)
    Strategy().load_optimizer(nn.Identity(), fused, saved)
    (group,) = fused.param_groups
    assert (group["lr"], group["fused"], group["foreach"]) == (0.5, True, None)


def state_of(trainer: Trainer) -> dict[str, Any]:
    strategy = trainer.strategy
    return {
        "model": strategy.model_state(trainer.module),
        "optimizer": strategy.optimizer_state(trainer.module, trainer.optimizer),
    }


@pytest.mark.parametrize(
    ("writer", "reader", "optimizer"),
    [
        (("single", 1), ("fsdp2", 3), "adamw"),
        (("fsdp2", 3), ("ddp", 2), "adamw"),
        (("fsdp2", 2), ("fsdp2", 4), "rmsprop"),
        (("ddp", 3), ("fsdp2", 2), "sgd"),
    ],
)
def test_a_state_goes_on_in_another_strategy_at_another_number_of_ranks(
    writer: tuple[str, int], reader: tuple[str, int], optimizer: str
) -> None:
    def new(ctx: DistContext, strategy: str) -> Trainer:
        return trainer_for(ctx, config(strategy, optimizer=optimizer))

    states = run_ranks(lambda ctx: state_of(train(new(ctx, writer[0]), 0, 1)), writer[1])
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=0, atol=0)

    def go_on(ctx: DistContext) -> tuple[dict[str, Any], dict[str, Tensor]]:
        trainer = new(ctx, reader[0])
        trainer.strategy.load_model(trainer.module, states[0]["model"])
        trainer.strategy.load_optimizer(trainer.module, trainer.optimizer, states[0]["optimizer"])
        return deepcopy(state_of(trainer)), weights(train(trainer, 1, 2))

    reference = run_ranks(lambda ctx: weights(train(new(ctx, "single"), 0, 2)), 1)[0]
    for loaded, result in run_ranks(go_on, reader[1]):
        for state in (loaded, states[0]):
            group = state["optimizer"]["param_groups"][0]
            assert group["params"] == [0, 1, 2, 3, 4, 5]
            group |= {"fused": None, "foreach": None}  # how it is computed is each strategy's own
        torch.testing.assert_close(loaded, states[0], rtol=0, atol=0)
        assert largest_difference(result, reference) < 1e-10


def test_an_overflow_in_one_share_makes_all_ranks_of_fsdp2_skip() -> None:
    def work(ctx: DistContext) -> tuple[float, bool]:
        trainer = trainer_for(ctx, config("fsdp2", amp="fp16"))
        before = weights(trainer_with_gradients(trainer))
        first = next(iter(trainer.module.parameters())).grad
        assert isinstance(first, DTensor)
        if ctx.rank == 1:
            first.to_local().fill_(float("inf"))
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        after = FSDP2.model_state(trainer.module)
        return trainer.scaler.get_scale(), all(torch.equal(before[name], after[name]) for name in after)

    assert run_ranks(work, 2) == [(2**15, True)] * 2


def trainer_with_gradients(trainer: Trainer) -> Trainer:
    """After a backward pass whose scaled gradients are finite."""
    images = torch.ones(2, *SHAPE, dtype=torch.float64)
    trainer.scaler.scale(trainer.wrapped(images).square().mean()).backward()
    return trainer


class Blocks(nn.Module):
    """Blocks in a list, of which two share a weight; a large layer outside of it; a layer within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(9, 9)
        self.body = nn.ModuleList([nn.Linear(9, 9), nn.Sequential(nn.Linear(2, 2), nn.Bilinear(3, 3, 9))])
        self.tied = nn.ModuleList([nn.Linear(9, 9, bias=False), nn.Linear(9, 9, bias=False)])
        self.tied[1].weight = self.tied[0].weight
        self.deep = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2, enable_nested_tensor=False)


def test_units_are_large_members_of_containers_that_share_nothing() -> None:
    model = Blocks()
    names = {module: name for name, module in model.named_modules()}
    assert [names[unit] for unit in units(model, 50)] == ["body.0", "body.1.1", "deep.layers.0", "deep.layers.1"]
    assert units(model, 10_000) == []


@pytest.mark.parametrize("strategy", ["dp", "single"])
def test_a_strategy_of_one_process_refuses_two_ranks(strategy: str) -> None:
    def work(ctx: DistContext) -> str:
        with pytest.raises(Mistake, match=f"expected 1 rank with --strategy {strategy}, got 2; use --strategy ddp"):
            trainer_for(ctx, config(strategy))
        return "refused"

    assert run_ranks(work, 2) == ["refused"] * 2
