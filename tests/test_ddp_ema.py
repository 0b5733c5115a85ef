"""The moving average of weights: its formula, its state, and a model that is itself again after it was lent out."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ddp.context import DistContext
from ddp.ema import Ema
from tests.ranks import run_ranks


class Net(nn.Module):
    """A frozen parameter, a weight under two names, BatchNorm, and a mask with infinities."""

    mask: Tensor

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("mask", torch.tensor([0, 0, 0, 0, 0, -torch.inf]), persistent=False)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.norm(self.first(x)).relu()) * self.frozen + self.mask
        return logits.log_softmax(dim=1)


AVERAGED = ["first.weight", "first.bias", "norm.weight", "norm.bias", "second.bias"]
BUFFERS = ["norm.running_mean", "norm.running_var"]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def copies_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors_of(module).items()}


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        pair = [part[name].detach().contiguous().view(-1).view(torch.uint8) for part in (first, second)]
        assert torch.equal(*pair), name


def move(module: nn.Module, step: int) -> None:
    """Change all that training changes."""
    generator = torch.Generator().manual_seed(step)
    for tensor in tensors_of(module).values():
        if tensor.requires_grad or tensor.isfinite().all():
            noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
            tensor.data.copy_(tensor + 1 if not tensor.is_floating_point() else tensor + noise)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float16, 1e-6)]
)
def test_the_average_is_that_of_the_formula(dtype: torch.dtype, atol: float) -> None:
    """Over 40 steps, in which the decay rises from 1/10 to what was asked for; in float32 for half precision."""
    module = Net(dtype)
    ema = Ema(module, decay=0.8)
    expected = {name: tensor.double() for name, tensor in copies_of(module).items()}
    for step in range(40):
        if step < 36:
            move(module, step)
        ema.update(module)
        decay = min(0.8, (1 + step) / (10 + step))
        for name, tensor in tensors_of(module).items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.detach().double()
    assert list(ema.parameters) == AVERAGED
    assert list(ema.buffers) == BUFFERS
    for name, average in (ema.parameters | ema.buffers).items():
        assert average.dtype == torch.promote_types(dtype, torch.float32)
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(average.double(), expected[name], rtol=0, atol=atol * scale)


def test_the_decay_rises_with_the_updates_from_a_tenth_to_what_was_asked_for() -> None:
    module = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    ema, decays = Ema(module, decay=0.25), []
    for _ in range(4):
        ema.parameters["weight"].fill_(1)
        nn.init.zeros_(module.weight)
        ema.update(module)
        decays.append(float(ema.parameters["weight"]))
    assert decays == pytest.approx([1 / 10, 2 / 11, 3 / 12, 0.25], abs=1e-15)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_of_0_to_1_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"expected a decay of the moving average in \[0, 1\), got"):
        Ema(nn.Linear(1, 1), decay)


def test_a_model_without_anything_to_average_is_left_alone() -> None:
    module = nn.Flatten()
    ema = Ema(module, decay=0.9)
    ema.update(module)
    with ema.applied(module):
        assert ema.updates == 1


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_holds_the_averages_in_the_block_and_its_own_bits_after_it(dtype: torch.dtype, error: bool) -> None:
    module = Net(dtype)
    ema = Ema(module, decay=0.9)
    for step in range(3):
        move(module, step)
        ema.update(module)
    module.first.weight.data[0, 0] = torch.nan
    module.first.weight.data[0, 1] = -0.0
    before, places = copies_of(module), {name: tensor.data_ptr() for name, tensor in tensors_of(module).items()}
    kept, objects = {name: average.clone() for name, average in ema.parameters.items()}, tensors_of(module)

    def lend() -> None:
        with ema.applied(module):
            averages = {name: average.to(dtype) for name, average in (ema.parameters | ema.buffers).items()}
            assert_same_bits(copies_of(module), before | averages)
            assert not torch.equal(module.second.weight, before["first.weight"])  # tied still
            module.get_buffer("norm.running_mean").add_(1)
            if error:
                raise KeyboardInterrupt

    if error:
        with pytest.raises(KeyboardInterrupt):
            lend()
    else:
        lend()
    assert_same_bits(copies_of(module), before)
    assert {name: tensor.data_ptr() for name, tensor in tensors_of(module).items()} == places
    assert all(tensor is objects[name] for name, tensor in tensors_of(module).items())
    assert_same_bits(ema.parameters, kept)


def test_an_average_goes_on_from_its_state_to_the_same_bit() -> None:
    module = Net()
    ema, twin = Ema(module, decay=0.9), Ema(Net(), decay=0.9)
    for step in range(6):
        move(module, step)
        ema.update(module)
        if step == 2:
            file = io.BytesIO()
            torch.save([ema.shared_state(), ema.own_state()], file)
            file.seek(0)
            twin.load(*torch.load(file, weights_only=True))
        if step > 2:
            twin.update(module)
    assert twin.updates == ema.updates == 6
    assert_same_bits(twin.parameters | twin.buffers, ema.parameters | ema.buffers)


def test_a_rank_has_buffers_of_its_own_or_else_the_shared_ones() -> None:
    module = Net()
    ema = Ema(module, decay=0.9)
    move(module, 0)
    ema.update(module)
    own = {"buffers": {name: torch.full((6,), 7.0) for name in BUFFERS}}
    with_own, without = Ema(Net(), decay=0.9), Ema(Net(), decay=0.9)
    with_own.load(ema.shared_state(), own)
    without.load(ema.shared_state(), None)
    assert_same_bits(with_own.buffers, own["buffers"])
    assert_same_bits(without.buffers, ema.buffers)
    assert_same_bits(with_own.parameters, ema.parameters)


def gradients(ctx: DistContext, *, average: bool) -> list[list[Tensor]]:
    """Gradients of each step of a small run under DDP; with an average, it is evaluated between the steps."""
    module = Net()
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, bucket_cap_mb=0.0001)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    ema = Ema(module, decay=0.9) if average else None
    history = []
    for step in range(4):
        images = torch.randn(4, 6, generator=torch.Generator().manual_seed(step * ctx.world_size + ctx.rank))
        optimizer.zero_grad(set_to_none=True)
        wrapped(images)[:, 0].sum().backward()
        history.append([each.grad.clone() for each in module.parameters() if each.grad is not None])
        optimizer.step()
        if ema is not None:
            ema.update(module)
            with ema.applied(module), torch.no_grad():
                module.eval()
                module(images)
                module.norm.reset_running_stats()  # as a merge of statistics would change them
                module.train()
    if ema is not None:
        history.append(list(copy.deepcopy(ema.parameters).values()))
    return history


@pytest.mark.parametrize("world_size", [2, 3])
def test_training_goes_on_to_the_same_bit_after_averages_were_evaluated(world_size: int) -> None:
    def work(ctx: DistContext) -> list[list[list[Tensor]]]:
        return [gradients(ctx, average=False), gradients(ctx, average=True)]

    results = run_ranks(work, world_size)
    for without, (*with_average, averages) in results:
        torch.testing.assert_close(with_average, without, rtol=0, atol=0)
        torch.testing.assert_close(averages, results[0][1][-1], rtol=0, atol=0)  # no rank's differ
        assert any(bool(grad.any()) for grad in without[-1])


def test_sharded_parameters_have_the_averages_and_the_state_of_whole_ones() -> None:
    def run(module: nn.Module) -> tuple[Ema, dict[str, Any]]:
        ema = Ema(module, decay=0.9)
        state = ema.shared_state()
        for step in range(3):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1.5 + step)
            ema.update(module)
            if step == 1:
                state = copy.deepcopy(ema.shared_state())
        return ema, state

    def layer() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(5, 7)

    def work(ctx: DistContext) -> None:
        sharded = layer()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (ctx.world_size,)))
        (ema, state), (whole, whole_state) = run(sharded), run(layer())
        torch.testing.assert_close(state, whole_state, rtol=0, atol=0)
        torch.testing.assert_close(ema.shared_state(), whole.shared_state(), rtol=0, atol=0)
        twin = Ema(sharded, decay=0.9)
        twin.load(state, None)
        twin.update(sharded)
        torch.testing.assert_close(twin.shared_state(), whole.shared_state(), rtol=0, atol=0)
        images = torch.arange(10.0).reshape(2, 5)
        reference = layer()
        reference.load_state_dict(whole.parameters)
        with ema.applied(sharded), torch.no_grad():
            torch.testing.assert_close(sharded(images), reference(images), rtol=0, atol=0)

    run_ranks(work, 2)
    run_ranks(work, 3)
