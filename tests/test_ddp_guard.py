"""Losses and gradients that are not finite stop all ranks before the update, and are named."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.guard import NonFiniteError, explain
from ddp.loader import Batch
from ddp.loop import train_step
from ddp.optim_config import OptimConfig
from ddp.trainer import Trainer, make_trainer
from tests.ranks import run_ranks

SAMPLES = 4


class BadBackward(torch.autograd.Function):
    """Finite forward, infinite backward, where the input exceeds 50."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x > 50, float("inf"), grads[0])


class Net(nn.Module):
    """A linear model; `how` it answers to a first pixel above 50."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.fc = how, nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        if self.how == "gradient":
            out = self.fc(flat.clamp(max=1))
            return out + 0 * BadBackward.apply(out + flat[:, :1])
        logits = self.fc(flat)
        if self.how == "masked":  # the loss is infinite, its gradient is not
            return torch.cat([logits[:, :1].masked_fill(flat[:, :1] > 50, -float("inf")), logits[:, 1:]], dim=1)
        return logits


def trainer_on(ctx: DistContext, how: str, **options: Any) -> Trainer:
    torch.manual_seed(0)
    config = TrainConfig(batch_size=SAMPLES, optim=OptimConfig(lr=0.1, schedule="constant", warmup=0), **options)
    trainer = make_trainer(Net(how), config, ctx, total_steps=10)
    trainer.train_mode()
    return trainer


def batch_of(ctx: DistContext, bad_rank: int | None, value: float) -> Batch:
    """Samples 100 * rank + 0..3; the third of the bad rank has an odd first pixel."""
    images = torch.rand(SAMPLES, 3, 1, 1, generator=torch.Generator().manual_seed(ctx.rank))
    if ctx.rank == bad_rank:
        images[2, 0] = value
    ids = 100 * ctx.rank + torch.arange(SAMPLES)
    return Batch(images, torch.zeros(SAMPLES, dtype=torch.int64), SAMPLES * ctx.world_size, ids)


def weights(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


CASES = [("plain", float("nan"), "a loss of nan"), ("masked", 99.0, "a loss of inf")]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("how", "value", "loss"), CASES)
@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_all_ranks_stop_before_the_update_and_name_step_rank_and_sample(
    world_size: int, how: str, value: float, loss: str, amp: str
) -> None:
    """Breaks if the flag is this rank's alone, if the update comes first, or if an infinite loss leaves no trace."""

    def work(ctx: DistContext) -> str:
        trainer = trainer_on(ctx, how, amp=amp)
        train_step(trainer, batch_of(ctx, None, 0))
        before = weights(trainer)
        with pytest.raises(NonFiniteError) as caught:
            train_step(trainer, batch_of(ctx, world_size - 1, value))
        assert same(weights(trainer), before)
        return explain(caught.value, 1, ctx)

    texts = run_ranks(work, world_size)
    last = world_size - 1
    assert set(texts) == {texts[0]}
    assert f"in step 2, got {loss} on rank {last} for number {100 * last + 2} of its 4 samples" in texts[0]


def test_a_gradient_that_is_not_finite_stops_all_ranks_though_every_loss_is() -> None:
    def work(ctx: DistContext) -> str:
        trainer = trainer_on(ctx, "gradient")
        with pytest.raises(NonFiniteError) as caught:
            train_step(trainer, batch_of(ctx, 1, 99.0))
        return explain(caught.value, 0, ctx)

    for text in run_ranks(work, 3):
        assert "in step 1, got gradients that are not finite, though every loss is" in text


def test_on_a_gpu_the_update_is_left_out_there_and_the_next_step_tells() -> None:
    """The path that does not wait for the device, run on the CPU, whose fused optimizers obey the same flag."""

    def work(ctx: DistContext) -> str:
        trainer = trainer_on(ctx, "plain")
        trainer.guard.deferred = True
        train_step(trainer, batch_of(ctx, None, 0))
        before = weights(trainer)
        train_step(trainer, batch_of(ctx, 1, float("nan")))
        assert same(weights(trainer), before)
        with pytest.raises(NonFiniteError) as caught:
            train_step(trainer, batch_of(ctx, None, 0))
        assert same(weights(trainer), before)
        return explain(caught.value, 2, ctx)

    for text in run_ranks(work, 3):
        assert "in step 2, got a loss of nan on rank 1 for number 102 of its 4 samples" in text


def test_a_deferred_answer_can_be_asked_for_before_a_checkpoint() -> None:
    def work(ctx: DistContext) -> None:
        trainer = trainer_on(ctx, "plain")
        trainer.guard.deferred = True
        train_step(trainer, batch_of(ctx, None, 0))
        trainer.guard.flush()
        train_step(trainer, batch_of(ctx, 0, float("nan")))
        with pytest.raises(NonFiniteError):
            trainer.guard.flush()

    run_ranks(work, 2)
