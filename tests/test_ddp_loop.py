"""The training step: one loss denominator, ranks that stay equal, and mixed precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch
from ddp.loop import train_step
from ddp.optim_config import OptimConfig
from ddp.trainer import Trainer, make_trainer
from tests.ranks import run_ranks

OPTIM = OptimConfig(lr=0.1, schedule="constant", warmup=0, label_smoothing=0.1)


def trainer_on(ctx: DistContext, **options: Any) -> Trainer:
    torch.manual_seed(ctx.rank)  # DDP must send rank 0's weights to all
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    trainer = make_trainer(module, TrainConfig(batch_size=4, optim=OPTIM, **options), ctx, total_steps=10)
    trainer.wrapped.train()
    return trainer


def batch_of(sizes: list[int], rank: int, dtype: torch.dtype = torch.float32) -> Batch:
    """A rank's part of a global batch that is cut into those sizes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sum(sizes), 3, 2, 2, dtype=torch.float64, generator=generator).to(dtype)
    labels = torch.randint(4, (sum(sizes),), generator=generator)
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    return Batch(images[mine], labels[mine], sum(sizes), torch.arange(len(images))[mine])


def gradients_of(sizes: list[int]) -> list[Tensor]:
    """Gradients of one float64 step, the same on all ranks."""

    def work(ctx: DistContext) -> list[Tensor]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
        trainer = make_trainer(module, TrainConfig(batch_size=4, optim=OPTIM), ctx, total_steps=10)
        train_step(trainer, batch_of(sizes, ctx.rank, torch.float64))
        return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]

    results = run_ranks(work, len(sizes))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)
    return results[0]


@pytest.mark.parametrize("sizes", [[6, 6], [7, 5], [11, 1], [4, 4, 4], [10, 1, 1], [3, 3, 3, 3]])
def test_the_gradient_is_that_of_the_whole_batch_however_it_is_shared(sizes: list[int]) -> None:
    """T2. Breaks if a rank's loss is the mean over its own samples, which weighs those of a small share more."""
    torch.testing.assert_close(gradients_of(sizes), gradients_of([12]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [[12], [6, 6], [7, 5], [5, 4, 3]])
@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_micro_batches_give_the_gradient_of_the_whole_batch_in_one_round_of_communication(
    sizes: list[int], accumulate: int
) -> None:
    """T2, T3. Breaks if micro-batches are averaged each by itself, or if no_sync leaves out the forward pass (all
    communicate) or does not end before the last one (none does).
    """

    def work(ctx: DistContext) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
        trainer = make_trainer(
            module, TrainConfig(batch_size=4, optim=OPTIM, accumulate=accumulate), ctx, total_steps=10
        )
        rounds = 0

        def count(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            nonlocal rounds
            rounds += bucket.is_last()
            return default_hooks.allreduce_hook(ctx.group, bucket)

        if isinstance(trainer.wrapped, DistributedDataParallel):
            trainer.wrapped.register_comm_hook(None, count)
        for _ in range(2):
            train_step(trainer, batch_of(sizes, ctx.rank, torch.float64))
        return [parameter.detach().clone() for parameter in module.parameters()], rounds

    def whole(ctx: DistContext) -> list[Tensor]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
        trainer = make_trainer(module, TrainConfig(batch_size=4, optim=OPTIM), ctx, total_steps=10)
        for _ in range(2):
            train_step(trainer, batch_of([12], 0, torch.float64))
        return [parameter.detach().clone() for parameter in module.parameters()]

    expected = run_ranks(whole, 1)[0]
    for parameters, rounds in run_ranks(work, len(sizes)):
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)
        assert rounds == (2 if len(sizes) > 1 else 0)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_have_equal_parameters_after_every_step(world_size: int) -> None:
    def work(ctx: DistContext) -> list[list[Tensor]]:
        trainer = trainer_on(ctx)
        history = []
        for _ in range(3):
            train_step(trainer, batch_of([4] * world_size, ctx.rank))
            history.append([parameter.detach().clone() for parameter in trainer.module.parameters()])
        return history

    histories = run_ranks(work, world_size)
    for history in histories[1:]:
        torch.testing.assert_close(history, histories[0], rtol=0, atol=0)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_full_precision(amp: str) -> None:
    def work(ctx: DistContext) -> list[float]:
        trainers = [trainer_on(ctx, amp=precision) for precision in ("off", amp)]
        batch = batch_of([8, 8], ctx.rank)
        return [float([train_step(trainer, batch) for _ in range(8)][-1]) for trainer in trainers]

    full, mixed = run_ranks(work, 2)[0]
    assert mixed == pytest.approx(full, rel=0.05)
    assert mixed != full  # or autocast was not on


def test_an_fp16_overflow_on_one_rank_skips_the_step_and_the_schedule_on_all() -> None:
    def work(ctx: DistContext) -> dict[str, Any]:
        trainer = trainer_on(ctx, amp="fp16")
        before = [parameter.detach().clone() for parameter in trainer.module.parameters()]
        good = batch_of([4, 4, 4], ctx.rank)
        last: Any = trainer.module[3]
        overflow = last.bias.register_hook(lambda grad: grad * (float("inf") if ctx.rank == 1 else 1))
        train_step(trainer, good)
        overflow.remove()
        unchanged = all(torch.equal(a, b) for a, b in zip(before, trainer.module.parameters(), strict=True))
        skipped = {"unchanged": unchanged, "steps": trainer.scheduler.last_epoch, "scale": trainer.scaler.get_scale()}
        train_step(trainer, good)
        changed = any(not torch.equal(a, b) for a, b in zip(before, trainer.module.parameters(), strict=True))
        return skipped | {"changed": changed, "later": trainer.scheduler.last_epoch, "count": trainer.skipped_steps}

    expected = {"unchanged": True, "steps": 0, "scale": 32768.0, "changed": True, "later": 1, "count": 1}
    assert run_ranks(work, 3) == [expected] * 3


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_the_l1_penalty_and_the_scaled_learning_rate_reach_the_update(amp: str) -> None:
    def work(ctx: DistContext) -> tuple[list[Tensor], list[Tensor]]:
        optim = replace(OPTIM, optimizer="sgd", momentum=0, weight_decay=0, lr_scaling="linear", lr_base_batch=64)
        steps = []
        for l1 in (0.0, 0.5):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
            config = TrainConfig(optim=replace(optim, l1=l1), amp=amp, global_batch_size=128)  # type: ignore[arg-type]
            trainer = make_trainer(module, config, ctx, total_steps=10)
            before = [parameter.detach().clone() for parameter in module.parameters()]
            train_step(trainer, batch_of([8, 8], ctx.rank))
            after = [parameter.detach() for parameter in module.parameters()]
            steps.append([new - old for new, old in zip(after, before, strict=True)])
        return steps[1], [plain - 0.2 * 0.5 * old.sign() for plain, old in zip(steps[0], before, strict=True)]

    with_penalty, expected = run_ranks(work, 2)[0]
    torch.testing.assert_close(with_penalty, expected, rtol=0, atol=1e-5)  # lr 0.1 * 128 / 64 = 0.2


def test_single_is_refused_on_several_ranks() -> None:
    def work(ctx: DistContext) -> None:
        with pytest.raises(ValueError, match="expected 1 rank with --strategy single, got 2"):
            trainer_on(ctx, strategy="single")

    run_ranks(work, 2)


def test_an_unknown_strategy_is_refused_with_those_that_exist() -> None:
    def work(ctx: DistContext) -> None:
        with pytest.raises(
            ValueError, match=r"strategy \(ddp, ddp-spawn, dp, fsdp2, single\), got 'dpd'; did you mean dp"
        ):
            trainer_on(ctx, strategy="dpd")

    run_ranks(work, 1)
