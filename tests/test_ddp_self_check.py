"""The comparison of all state between ranks: one bit of one tensor on one rank is found, and named with its rank."""

import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ddp.context import DistContext
from ddp.self_check import Difference, RanksDifferError, State, compare, fingerprints, replicated_state
from tests.ranks import run_ranks


class Odd(nn.Module):
    """Parameters of half precision, of no dimension and of no elements; a weight under two names; an int buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.again = self.fc
        self.low = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.ones(0, 2))
        self.norm = nn.BatchNorm1d(3)


class Trainer:
    """What a training step changes, after one update by a gradient of ones everywhere; the same on every rank."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = Odd()
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4)
        self.scaler.scale(torch.ones(()))  # makes the scale, which is lazy
        for parameter in self.module.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()
        self.scheduler.step()


def state_of(trainer: Trainer) -> State:
    return replicated_state(trainer.module, trainer.optimizer, trainer.scaler, trainer.scheduler, buffers=True)


def flip(tensor: Tensor, bit: int = 0) -> None:
    """Flip one bit of a tensor's last element."""
    tensor.detach().view(-1).view(torch.uint8)[-1 - bit // 8] ^= 1 << bit % 8


def damage_lr(trainer: Trainer) -> None:
    trainer.optimizer.param_groups[0]["lr"] = math.nextafter(trainer.optimizer.param_groups[0]["lr"], 1)


def momentum_of(trainer: Trainer) -> Tensor:
    buffer = trainer.optimizer.state[trainer.module.fc.weight]["momentum_buffer"]
    assert isinstance(buffer, Tensor)
    return buffer


def grow(trainer: Trainer) -> None:
    assert trainer.scaler._growth_tracker is not None
    trainer.scaler._growth_tracker += 1


DAMAGE: dict[str, Callable[[Trainer], None]] = {
    "fc.weight": lambda trainer: flip(trainer.module.get_parameter("fc.weight")),
    "low": lambda trainer: flip(trainer.module.get_parameter("low"), bit=15),
    "scalar": lambda trainer: flip(trainer.module.get_parameter("scalar"), bit=31),
    "norm.running_var": lambda trainer: flip(trainer.module.get_buffer("norm.running_var")),
    "norm.num_batches_tracked": lambda trainer: flip(trainer.module.get_buffer("norm.num_batches_tracked")),
    "optimizer.fc.weight.momentum_buffer": lambda trainer: flip(momentum_of(trainer)),
    "lr.group0": damage_lr,
    "scaler.scale": lambda trainer: trainer.scaler.update(2.0),
    "scaler.growth_tracker": grow,
    "scheduler.last_epoch": lambda trainer: trainer.scheduler.step(),
}


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_one_bit_on_one_rank_is_found_and_named(world_size: int) -> None:
    """Every kind of state in turn, damaged on every rank in turn; undamaged state is equal in between."""

    def work(ctx: DistContext) -> list[tuple[Difference | None, Difference | None]]:
        found = []
        for number, damage in enumerate(DAMAGE.values()):
            trainer = Trainer()
            before = compare(ctx, state_of(trainer))
            if ctx.rank == number % world_size:
                damage(trainer)
            found.append((before, compare(ctx, state_of(trainer))))
        return found

    results = run_ranks(work, world_size)
    for found in results:
        for number, (name, (before, after)) in enumerate(zip(DAMAGE, found, strict=True)):
            assert before is None
            assert after is not None
            rank = number % world_size
            assert after.name == (name if name != "scheduler.last_epoch" else "lr.group0")  # the step changed both
            assert rank in after.groups[-1 if world_size > 2 else rank]
            assert after.minority == ((rank,) if world_size > 2 else ())
            assert after.others == (name == "scheduler.last_epoch")


@pytest.mark.parametrize(
    ("values", "groups", "minority", "text"),
    [
        ([1, 2], ((0,), (1,)), (), "2 versions of b: rank 0 against rank 1"),
        ([1, 2, 1], ((0, 2), (1,)), (1,), "a different b on rank 1"),
        ([2, 1, 1], ((1, 2), (0,)), (0,), "a different b on rank 0"),
        ([1, 2, 3], ((0,), (1,), (2,)), (), "3 versions of b: rank 0 against rank 1 against rank 2"),
        ([1, 2, 2, 1], ((0, 3), (1, 2)), (), "2 versions of b: ranks 0, 3 against ranks 1, 2"),
        ([1, 2, 3, 3], ((2, 3), (0,), (1,)), (), "3 versions of b: ranks 2, 3 against rank 0 against rank 1"),
        ([None, 2, 2, 2], ((1, 2, 3), (0,)), (0,), "a different b on rank 0"),
        ([2, None, 2], ((0, 2), (1,)), (1,), "a different b on rank 1"),
    ],
)
def test_the_ranks_that_are_outnumbered_are_named_or_else_all_sides(
    values: list[int | None], groups: tuple[tuple[int, ...], ...], minority: tuple[int, ...], text: str
) -> None:
    def work(ctx: DistContext) -> Difference | None:
        value = values[ctx.rank]
        return compare(ctx, {"a": 1.5, **({} if value is None else {"b": torch.tensor(value)}), "c": 0})

    results = run_ranks(work, len(values))
    for difference in results:
        assert difference == results[0]
        assert difference is not None
        assert (difference.name, difference.groups, difference.minority) == ("b", groups, minority)
        assert str(difference) == text


def test_the_first_name_in_rank_0s_order_is_named_whatever_the_order_of_the_others() -> None:
    def work(ctx: DistContext) -> tuple[Difference | None, Difference | None]:
        names = ["y", "x", "w"] if ctx.rank == 0 else ["w", "x", "y"]
        return compare(ctx, dict.fromkeys(names, 1)), compare(ctx, dict.fromkeys(names, ctx.rank))

    difference = Difference("y", ((0,), (1,)), others=2)
    assert run_ranks(work, 2) == [(None, difference)] * 2
    assert str(difference) == "2 versions of y (and 2 more): rank 0 against rank 1"


def test_equal_bits_that_are_not_a_number_are_equal() -> None:
    def work(ctx: DistContext) -> list[Difference | None]:
        quiet = torch.tensor([math.nan, -math.inf, 0.0])
        other = quiet.clone()
        if ctx.rank == 1:
            flip(other[:1])
        return [compare(ctx, {"a": quiet, "b": math.nan}), compare(ctx, {"a": other})]

    same, different = run_ranks(work, 3)[2]
    assert same is None
    assert different is not None
    assert different.minority == (1,)


def test_the_type_and_the_shape_are_part_of_the_fingerprint() -> None:
    zeros: list[Tensor | float | int] = [
        *(torch.zeros(4, dtype=dtype) for dtype in (torch.float32, torch.int32, torch.bfloat16, torch.float16)),
        *(torch.zeros(4, dtype=dtype) for dtype in (torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn)),
        *(torch.zeros(shape) for shape in ([2, 2], [1, 4], [], [0], [0, 4])),
        *(-torch.zeros(4), 0, 0.0, -0.0, math.nan),
    ]
    assert len(set(fingerprints({str(n): zero for n, zero in enumerate(zeros)}).values())) == len(zeros)


def test_the_fingerprint_is_of_what_a_tensor_says_not_of_how_it_lies_in_memory() -> None:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    other = images.contiguous(memory_format=torch.channels_last)
    first, second = fingerprints({"plain": images, "nhwc": other}).values()
    assert first == second
    assert len(first) == 16
    assert fingerprints({"part": images[:, 1]}) == fingerprints({"part": images[:, 1].clone()})
    assert fingerprints({"part": images.flatten()[::2]}) == fingerprints({"part": images.flatten()[::2].clone()})
    assert fingerprints({"weight": nn.Parameter(images)})["weight"] == first


def test_what_is_shared_out_among_the_ranks_is_left_out() -> None:
    def work(ctx: DistContext) -> list[Difference | None]:
        mesh = init_device_mesh("cpu", (ctx.world_size,))
        shards = distribute_tensor(torch.arange(6.0), mesh, [Shard(0)])
        return [compare(ctx, {"shards": shards, "a": 1}), compare(ctx, {"shards": shards, "a": ctx.rank})]

    assert run_ranks(work, 2) == [[None, Difference("a", ((0,), (1,)), others=0)]] * 2


def test_the_state_names_each_thing_once_and_leaves_out_what_is_not_alike() -> None:
    trainer = Trainer()
    module, scaler, scheduler = trainer.module, trainer.scaler, trainer.scheduler
    whole = state_of(trainer)
    without_buffers = replicated_state(module, trainer.optimizer, scaler, scheduler, buffers=False)
    without_optimizer = replicated_state(module, None, scaler, scheduler, buffers=False)
    parameters = ["low", "scalar", "empty", "fc.weight", "fc.bias", "norm.weight", "norm.bias"]
    buffers = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    rest = ["scaler.scale", "scaler.growth_tracker", "scheduler.last_epoch"]
    assert [name for name in whole if ".group" not in name] == [
        *parameters, *buffers, *(f"optimizer.{name}.momentum_buffer" for name in parameters), *rest
    ]  # fmt: skip
    assert {"lr.group0", "momentum.group0", "weight_decay.group0"} <= set(whole)
    assert list(without_buffers) == [name for name in whole if name not in buffers]
    assert list(without_optimizer) == [*parameters, *rest]


def test_the_error_says_what_differs_where_and_what_to_do_also_after_it_was_pickled() -> None:
    error = RanksDifferError(40, Difference("optimizer.fc.weight.momentum_buffer", ((0, 1), (2,)), others=0))
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(copied) == str(error)
    assert str(error).startswith(
        "expected the same bits on every rank after step 40, "
        "got a different optimizer.fc.weight.momentum_buffer on rank 2; resume from a checkpoint no newer than"
    )
