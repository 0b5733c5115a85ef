"""SyncBatchNorm on the CPU: a group of ranks must compute what one process computes from the whole batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch
from ddp.loop import train_step
from ddp.mistake import Mistake
from ddp.optim_config import OptimConfig
from ddp.syncbn import convert_sync_batchnorm, merge_running_statistics, node_group
from ddp.trainer import make_trainer
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
        train_step(trainer, Batch(images[mine], labels[mine], sum(sizes), torch.arange(len(images))[mine]))
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
    """T1. Breaks if the CPU gets torch's own SyncBatchNorm, which refuses it, or if unequal shares count alike."""
    assert largest_difference(steps, sync_bn=True) < 1e-10


@pytest.mark.parametrize("ranks", [2, 3])
def test_plain_batchnorm_does_not_so_the_comparison_can_fail(ranks: int) -> None:
    assert largest_difference([[4] * ranks] * 3, sync_bn=False) > 1e-3


def test_ranks_with_unequal_shares_cut_them_into_equally_many_micro_batches() -> None:
    """T13. Breaks if a rank cuts by the size of its own share, when others wait for it, or into more than there are."""
    steps = [[3, 2, 2], [2, 1, 1], [1, 1, 1]]
    results = run_ranks(lambda ctx: train_on(ctx, replace(CONFIG, accumulate=3), steps), 3)
    for result in results:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)
        assert all(torch.isfinite(tensor).all() for tensor in result.values())


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


def test_merged_statistics_are_those_of_the_mixture_of_what_the_ranks_saw() -> None:
    """T15. Breaks if variances are only averaged, without that of the ranks' means."""

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


def test_a_rank_without_samples_changes_nothing_under_bf16_autocast() -> None:
    def work(ctx: DistContext) -> dict[str, Tensor]:
        torch.manual_seed(1)
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
        net = convert_sync_batchnorm(plain, ctx.group, ctx.device)
        images = data(0, 6)[0].float()
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(images if ctx.rank == 0 else images[:0]).float().square().sum()
        loss.backward()
        return {name: parameter.grad for name, parameter in net.named_parameters()} | dict(net.named_buffers())

    alone = run_ranks(work, 1)[0]
    full, empty, _ = run_ranks(work, 3)
    torch.testing.assert_close(full, alone, rtol=0, atol=0)
    assert all((value == 0).all() for name, value in empty.items() if not name.startswith("1."))
    torch.testing.assert_close(empty["1.running_var"], alone["1.running_var"], rtol=0, atol=0)


def test_statistics_over_a_node_are_those_of_its_ranks() -> None:
    nodes = [7, 2, 7, 7]

    def work(ctx: DistContext) -> Tensor:
        here = replace(ctx, node_rank=nodes[ctx.rank])
        layer = convert_sync_batchnorm(nn.BatchNorm2d(3).double(), node_group(here), ctx.device)
        return layer(data(0, 8)[0][ctx.rank * 2 : ctx.rank * 2 + 2]).detach()

    outputs = run_ranks(work, 4)
    parts = data(0, 8)[0].split(2)
    for node in (2, 7):
        members = [rank for rank, each in enumerate(nodes) if each == node]
        expected = nn.BatchNorm2d(3).double()(torch.cat([parts[rank] for rank in members])).detach()
        found = torch.cat([outputs[rank] for rank in members])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_part_of_the_launch_has_no_groups_of_nodes() -> None:
    def work(ctx: DistContext) -> bool:
        part = ctx.first(1)
        if part is not None:
            with pytest.raises(Mistake, match="expected all 2 ranks of the launch with --sync-bn-scope node, got 1"):
                node_group(part)
        return True

    assert run_ranks(work, 2) == [True, True]


def test_a_compiled_model_keeps_its_statistics_together() -> None:
    def work(ctx: DistContext) -> tuple[list[Tensor], list[Tensor]]:
        results = []
        for compiled in (False, True):
            torch.manual_seed(1)
            plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
            net = convert_sync_batchnorm(plain, ctx.group, ctx.device)
            call = torch.compile(net, backend="eager") if compiled else net
            for step in range(2):
                call(data(step, 6)[0].float()[ctx.rank * 3 : ctx.rank * 3 + 3]).square().sum().backward()
            results.append([*(parameter.grad for parameter in net.parameters()), *net.buffers()])
        return results[0], results[1]

    for eager, compiled in run_ranks(work, 2):
        torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6)
