"""SyncBatchNorm on the CPU: a group of ranks must compute what one process computes from the whole batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddp.config import OptimConfig, TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch
from ddp.loop import make_trainer, train_step
from ddp.syncbn import CpuSyncBatchNorm, convert_sync_batchnorm, merge_running_statistics
from tests.ranks import run_ranks

CONFIG = TrainConfig(batch_size=4, sync_bn=True, optim=OptimConfig(lr=0.1, schedule="constant", warmup=0))


def small_net() -> nn.Module:
    """Convolution, BatchNorm over images, BatchNorm over features; float64."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.BatchNorm1d(16),
        nn.ReLU(), nn.Linear(16, 5),
    ).double()  # fmt: skip


def data(step: int, samples: int) -> tuple[Tensor, Tensor]:
    """The global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(samples, 3, 8, 8, dtype=torch.float64, generator=generator) * 2 + 1
    return images, torch.randint(5, (samples,), generator=generator)


def train_on(ctx: DistContext, config: TrainConfig, steps: list[list[int]]) -> dict[str, Any]:
    """Three real training steps; steps[s][r] samples for rank r. Returns gradients, parameters and buffers."""
    trainer = make_trainer(small_net(), config, ctx, total_steps=100)
    trainer.wrapped.train()
    for step, sizes in enumerate(steps):
        images, labels = data(step, sum(sizes))
        start = sum(sizes[: ctx.rank])
        mine = slice(start, start + sizes[ctx.rank])
        train_step(trainer, Batch(images[mine], labels[mine], sum(sizes)))
    return {
        **{f"grad {name}": p.grad.clone() for name, p in trainer.module.named_parameters() if p.grad is not None},
        **{name: tensor.clone() for name, tensor in trainer.module.state_dict().items()},
    }


def largest_difference(steps: list[list[int]], *, sync_bn: bool) -> float:
    """Between the ranks' result and that of one process that sees the whole batches."""
    whole = [[sum(sizes)] for sizes in steps]
    config = TrainConfig(batch_size=4, sync_bn=sync_bn, optim=CONFIG.optim)
    expected = run_ranks(lambda ctx: train_on(ctx, TrainConfig(batch_size=4, optim=CONFIG.optim), whole), 1)[0]
    results = run_ranks(lambda ctx: train_on(ctx, config, steps), len(steps[0]))
    return max(
        float((result[name].double() - expected[name].double()).abs().max()) for result in results for name in expected
    )


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([[4, 4], [4, 4], [4, 4]], id="2 ranks"),
        pytest.param([[4, 4], [6, 2], [1, 1]], id="2 ranks, uneven and single samples"),
        pytest.param([[4, 4, 4], [4, 4, 4], [4, 4, 4]], id="3 ranks"),
        pytest.param([[4, 4, 4], [3, 2, 2], [5, 1, 1]], id="3 ranks, uneven last batches"),
        pytest.param([[2, 2, 2, 2], [3, 3, 2, 2], [1, 1, 1, 1]], id="4 ranks"),
    ],
)
def test_ddp_with_syncbn_equals_one_process_with_the_whole_batch(steps: list[list[int]]) -> None:
    assert largest_difference(steps, sync_bn=True) < 1e-10


@pytest.mark.parametrize("ranks", [2, 3])
def test_plain_batchnorm_does_not_so_the_comparison_can_fail(ranks: int) -> None:
    assert largest_difference([[4] * ranks] * 3, sync_bn=False) > 1e-3


def test_a_rank_without_samples_contributes_nothing_and_stops_no_one() -> None:
    def work(ctx: DistContext) -> tuple[Tensor, Tensor]:
        layer = convert_sync_batchnorm(nn.BatchNorm2d(3).double(), ctx.group, ctx.device)
        images, _ = data(0, 6)
        images = (images[:6] if ctx.rank == 0 else images[:0]).requires_grad_()
        out = layer(images)
        (out**3).sum().backward()
        assert images.grad is not None
        return out.detach(), images.grad

    reference = nn.BatchNorm2d(3).double()
    images, _ = data(0, 6)
    expected = reference(images.requires_grad_())
    (expected**3).sum().backward()
    (out, grad), (empty, _), _ = run_ranks(work, 3)
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, images.grad, rtol=0, atol=1e-12)
    assert empty.shape == (0, 3, 8, 8)


def test_half_precision_inputs_keep_their_type_and_float32_statistics() -> None:
    def work(ctx: DistContext) -> tuple[Tensor, Tensor]:
        layer = convert_sync_batchnorm(nn.BatchNorm2d(3), ctx.group, ctx.device)
        images, _ = data(0, 8)
        out = layer(images.to(torch.bfloat16))
        return out, layer.running_mean

    out, mean = run_ranks(work, 2)[0]
    assert out.dtype == torch.bfloat16
    assert mean.dtype == torch.float32


@pytest.mark.parametrize("options", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_every_option_of_batchnorm_means_the_same(options: dict[str, Any]) -> None:
    def work(ctx: DistContext) -> list[Tensor]:
        layer = convert_sync_batchnorm(nn.BatchNorm2d(3, **options).double(), ctx.group, ctx.device)
        for step in range(3):
            images, _ = data(step, 8)
            out = layer(images[ctx.rank * 4 : ctx.rank * 4 + 4])
        return [out.detach(), *layer.state_dict().values()]

    reference = nn.BatchNorm2d(3, **options).double()
    for step in range(3):
        expected = reference(data(step, 8)[0])
    halves = [result[0] for result in run_ranks(work, 2)]
    torch.testing.assert_close(torch.cat(halves), expected.detach(), rtol=0, atol=1e-12)
    state = run_ranks(work, 2)[1][1:]
    torch.testing.assert_close(state, list(reference.state_dict().values()), rtol=0, atol=1e-12)


def test_evaluation_needs_no_other_rank() -> None:
    def work(ctx: DistContext) -> bool:
        layer = convert_sync_batchnorm(nn.BatchNorm2d(3), ctx.group, ctx.device).eval()
        batches = 2 if ctx.rank == 0 else 0
        return all(torch.isfinite(layer(torch.ones(1, 3, 4, 4))).all() for _ in range(batches))

    assert run_ranks(work, 2) == [True, True]


class Shared(nn.Module):
    """One BatchNorm under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.second = self.first


class FusedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm with a forward pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


def test_a_layer_used_under_two_names_stays_one_layer() -> None:
    def work(ctx: DistContext) -> bool:
        module = convert_sync_batchnorm(Shared(), ctx.group, ctx.device)
        return module.first is module.second and isinstance(module.first, CpuSyncBatchNorm)

    assert all(run_ranks(work, 2))


def test_a_layer_derived_from_batchnorm_is_refused_by_name() -> None:
    def work(ctx: DistContext) -> str:
        with pytest.raises(ValueError, match=r"got FusedBatchNorm at 1, whose own forward pass would be lost"):
            convert_sync_batchnorm(nn.Sequential(nn.ReLU(), FusedBatchNorm(3)), ctx.group, ctx.device)
        return "refused"

    assert run_ranks(work, 1) == ["refused"]


def test_conversion_keeps_the_tensors_and_what_evaluation_computes() -> None:
    def work(ctx: DistContext) -> bool:
        net = small_net().eval()
        images, _ = data(0, 4)
        before, tensors = net(images), {name: id(tensor) for name, tensor in net.named_parameters()}
        net = convert_sync_batchnorm(net, ctx.group, ctx.device)
        same = tensors == {name: id(tensor) for name, tensor in net.named_parameters()}
        return same and torch.equal(before, net(images))

    assert all(run_ranks(work, 2))


def test_merged_statistics_are_those_of_the_mixture_of_what_the_ranks_saw() -> None:
    def work(ctx: DistContext) -> tuple[Tensor, Tensor]:
        layer = nn.BatchNorm2d(3, momentum=1.0).double()
        images, _ = data(0, 12)
        layer(images[ctx.rank * 4 : ctx.rank * 4 + 4])
        merge_running_statistics(layer, ctx.group)
        return layer.running_mean, layer.running_var

    images, _ = data(0, 12)
    parts = images.view(3, 4, 3, 8, 8).transpose(1, 2).flatten(2)
    expected_mean = parts.mean((0, 2))
    expected_var = parts.var(2).mean(0) + parts.mean(2).var(0, correction=0)
    for mean, var in run_ranks(work, 3):
        torch.testing.assert_close(mean, expected_mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(var, expected_var, rtol=0, atol=1e-12)
