"""Clipping, skipped steps and the GradScaler: the order of things, and ranks that stay together."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch
from ddp.loop import train_step
from ddp.optim_config import OptimConfig
from ddp.trainer import Trainer, make_trainer
from tests.ranks import run_ranks


def trainer_on(ctx: DistContext, clip_norm: float, amp: str = "off", ema_decay: float = 0.0) -> Trainer:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    optim = OptimConfig(
        lr=1.0, momentum=0, weight_decay=0, schedule="linear", warmup=0, clip_norm=clip_norm, ema_decay=ema_decay
    )
    trainer = make_trainer(module, TrainConfig(batch_size=4, optim=optim, amp=amp), ctx, 10)  # type: ignore[arg-type]
    trainer.train_mode()
    return trainer


def batch_of(ctx: DistContext, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(ctx.rank)
    images = torch.randn(size, 3, 2, 2, generator=generator)
    labels = torch.randint(4, (size,), generator=generator)
    return Batch(images, labels, size * ctx.world_size, torch.arange(size))


def update_of(trainer: Trainer, batch: Batch) -> Tensor:
    """What one step adds to all weights, as one vector."""
    before = [parameter.detach().clone() for parameter in trainer.module.parameters()]
    train_step(trainer, batch)
    after = trainer.module.parameters()
    return torch.cat([(new.detach() - old).flatten() for new, old in zip(after, before, strict=True)])


@pytest.mark.parametrize("world_size", [1, 3])
def test_an_update_has_the_norm_that_it_is_clipped_to(world_size: int) -> None:
    def work(ctx: DistContext) -> list[float]:
        free = update_of(trainer_on(ctx, 0), batch_of(ctx))
        small = update_of(trainer_on(ctx, 0.01), batch_of(ctx))
        large = update_of(trainer_on(ctx, 100.0), batch_of(ctx))
        assert torch.equal(free, large)
        along = torch.nn.functional.cosine_similarity(free, small, dim=0)
        return [float(free.norm()), float(small.norm()), float(along)]

    for free, small, along in run_ranks(work, world_size):
        assert free > 0.1
        assert small == pytest.approx(0.01, rel=1e-4)
        assert along == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_are_unscaled_before_they_are_clipped(world_size: int) -> None:
    """T11. Breaks if clipping sees scaled gradients: the update is then smaller by the scale, 65,536 times."""

    def work(ctx: DistContext) -> list[float]:
        norms = []
        for scale in (1.0, 2.0**16):
            trainer = trainer_on(ctx, 0.1, amp="fp16")
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            norms.append(float(update_of(trainer, batch_of(ctx)).norm()))
        return norms

    for norms in run_ranks(work, world_size):
        assert norms == [pytest.approx(0.1, rel=1e-2)] * 2


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_an_overflow_on_one_rank_holds_everything_back_on_all(world_size: int) -> None:
    """T12. Breaks if a skipped step moves the schedule or the average, or if ranks decide by their own gradients."""

    def work(ctx: DistContext) -> Any:
        trainer = trainer_on(ctx, 0, amp="fp16", ema_decay=0.5)
        assert trainer.ema is not None
        batch = batch_of(ctx)
        train_step(trainer, batch)
        average = {name: value.clone() for name, value in trainer.ema.parameters.items()}
        last: Any = trainer.module[3]
        overflow = last.bias.register_hook(lambda grad: grad * (float("inf") if ctx.rank == 1 else 1))
        assert not update_of(trainer, batch).any()
        assert all(torch.equal(trainer.ema.parameters[name], value) for name, value in average.items())
        held = (trainer.scheduler.last_epoch, trainer.ema.updates, trainer.skipped_steps, trainer.scaler.state_dict())
        overflow.remove()
        assert update_of(trainer, batch).any()
        return held, (trainer.scheduler.last_epoch, trainer.ema.updates, trainer.scaler.state_dict())

    outcomes = run_ranks(work, world_size)
    assert outcomes == [outcomes[0]] * world_size
    (steps, updates, skipped, scaler), (later_steps, later_updates, _) = outcomes[0]
    assert (steps, updates, skipped, scaler["scale"]) == (1, 1, 1, 32768.0)
    assert (later_steps, later_updates) == (2, 2)


def test_the_norm_that_is_shown_is_that_of_the_global_gradient() -> None:
    def work(ctx: DistContext) -> tuple[float, float]:
        trainer = trainer_on(ctx, 0.01)
        train_step(trainer, batch_of(ctx))
        clipped = torch.cat([each.grad.flatten() for each in trainer.module.parameters() if each.grad is not None])
        assert trainer.grad_norm is not None
        return float(trainer.grad_norm), float(clipped.norm())

    shown = run_ranks(work, 3)
    assert shown == [shown[0]] * 3
    assert shown[0][0] > 0.1
    assert shown[0][1] == pytest.approx(0.01, rel=1e-4)
