"""Adversarial training: two networks in turn, each with the gradients of one process on all samples."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddp.augment_config import AugmentConfig
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.fit import fit
from ddp.initial_config import InitialConfig
from ddp.loop import train_step
from ddp.mistake import Mistake
from ddp.optim_config import OptimConfig
from ddp.parallel_config import ParallelConfig
from ddp.progress import Silent
from ddp.tasks.adversarial import TASK
from models.dcgan import Dcgan, Discriminator, Generator
from tests.generative_runs import images, largest_difference, outcome, shared_batch, steps, trainer_for
from tests.ranks import run_ranks

SHAPE = (1, 16, 16)


def small() -> nn.Module:
    """BatchNorm in both; weights large enough for gradients that can be told from rounding errors."""
    model = Dcgan(Generator(5, (8, 4), 1), Discriminator(1, (4, 8)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    return model


def without_batch_norm() -> nn.Module:
    """Micro-batches have statistics of their own; without any, they change nothing."""
    model = small()
    for part in model.children():
        layers = part.get_submodule("layers")
        for name, layer in layers.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                setattr(layers, name, nn.Identity())
    return model


def test_micro_batches_give_the_gradients_of_the_whole_batch() -> None:
    """In both phases, with smoothed labels. Breaks if a part's gradients are averaged before its last micro-batch."""
    optim = OptimConfig(lr=0.05, schedule="constant", warmup=0, label_smoothing=0.1)
    (expected,) = steps(1, TASK, without_batch_norm, SHAPE, optim=optim)
    for found in steps(2, TASK, without_batch_norm, SHAPE, optim=optim, accumulate=2):
        assert largest_difference(found, expected) < 1e-10


def test_ranks_train_what_one_process_trains_on_all_samples() -> None:
    """Both phases, with SyncBN. Breaks if noise depends on who holds a sample, or gradients are not averaged."""
    (expected,) = steps(1, TASK, small, SHAPE, sync_bn=True)
    phases = [{name.split()[2].split(".")[0] for name in expected if name.startswith(f"gradient {n}")} for n in (0, 1)]
    assert phases == [{"discriminator"}, {"generator"}]
    assert all(float(value.abs().max()) > 1e-6 for name, value in expected.items() if name.startswith("gradient"))
    for ranks in (2, 3):
        for found in steps(ranks, TASK, small, SHAPE, sync_bn=True):
            assert largest_difference(found, expected) < 1e-10


def test_each_update_changes_its_own_network_only() -> None:
    def work(ctx: DistContext) -> list[set[str]]:
        trainer = trainer_for(ctx, TASK, small, sync_bn=True)
        seen: list[set[str]] = []

        def changed(before: dict[str, Tensor]) -> set[str]:
            now = dict(trainer.module.named_parameters())
            return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, now[name])}

        def copied() -> dict[str, Tensor]:
            return {name: value.detach().clone() for name, value in trainer.module.named_parameters()}

        state, update = copied(), trainer.optimizer.step

        def watched(*args: Any) -> None:
            nonlocal state
            update(*args)
            seen.append(changed(state))
            state = copied()

        trainer.optimizer.step = watched  # type: ignore[method-assign, assignment]
        train_step(trainer, shared_batch(ctx, TASK, SHAPE))
        return seen

    assert run_ranks(work, 2) == [[{"discriminator"}, {"generator"}]] * 2


def test_a_frozen_layer_of_a_part_stays_and_the_rest_is_trained() -> None:
    def work(ctx: DistContext) -> set[str]:
        trainer = trainer_for(ctx, TASK, small, initial=InitialConfig(freeze=("discriminator.layers.0",)))
        before = {name: value.detach().clone() for name, value in trainer.module.named_parameters()}
        train_step(trainer, shared_batch(ctx, TASK, SHAPE))
        return {name for name, value in trainer.module.named_parameters() if torch.equal(value, before[name])}

    assert run_ranks(work, 2) == [{"discriminator.layers.0.weight"}] * 2


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_resumed_run_goes_on_to_the_same_bit(tmp_path: Path, ranks: int) -> None:
    """Of both networks, each in a wrapper of its own."""
    config = TrainConfig(epochs=2, batch_size=4, optim=OptimConfig(lr=0.01), sync_bn=True, seed=3)

    def trained(ctx: DistContext, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        done = fit(small(), images(), replace(config, **options), ctx, Silent(), TASK)
        return {name: value.clone() for name, value in done.trainer.module.state_dict().items()}

    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()

    def work(ctx: DistContext) -> list[str]:
        whole = trained(ctx, out=tmp_path / "whole")
        stopped = trained(ctx, out=tmp_path / "parts", stop_after=3)
        resumed = trained(ctx, out=tmp_path / "parts", resume="auto")
        assert any(not torch.equal(stopped[name], value) for name, value in whole.items())
        return [name for name, value in whole.items() if not torch.equal(resumed[name], value)]

    assert run_ranks(work, ranks) == [[]] * ranks


def test_the_losses_are_those_of_the_paper() -> None:
    """-log D(real) - log(1 - D(made)), and -log D(made)."""

    def work(ctx: DistContext) -> bool:
        trainer = trainer_for(ctx, TASK, small)
        batch = shared_batch(ctx, TASK, SHAPE)
        made: list[Tensor] = []
        generator, discriminator = (trainer.module.get_submodule(name) for name in TASK.parts)
        generator.register_forward_hook(lambda module, given, output: made.append(output))
        first, second = (phase.losses(trainer, batch) for phase in TASK.phases)
        real, fake, other = (discriminator(each).sigmoid() for each in (batch.inputs, *made))
        torch.testing.assert_close(first, -real.log() - (1 - fake).log())
        torch.testing.assert_close(second, -other.log())
        return not made[0].requires_grad and made[1].requires_grad and not torch.equal(*made)

    assert run_ranks(work, 1) == [True]


def test_the_generator_is_told_how_the_data_is_normalised() -> None:
    def work(ctx: DistContext) -> list[float]:
        module = small()
        TASK.make_loaders(TrainConfig(batch_size=4), images(), ctx, module)
        generator = module.get_submodule("generator")
        return [float(generator.get_buffer(name)) for name in ("mean", "std")]

    assert run_ranks(work, 1)[0] == pytest.approx([0.3, 0.4])


def test_the_losses_on_test_images_are_the_same_to_the_bit_at_any_number_of_ranks() -> None:
    found = [each for ranks in (1, 2, 3, 4) for each in outcome(ranks, TASK, small, images())]
    assert len(found) == 10
    assert found[0].numbers["test_samples"] == 37
    assert found[0].score is None
    assert found[0].numbers["test_discriminator_loss"] > 0
    assert all(asdict(each) == asdict(found[0]) for each in found)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig(parallel=ParallelConfig(broadcast_buffers=True)), "expected no --broadcast-buffers for a GAN"),
        (TrainConfig(parallel=ParallelConfig(static_graph=True)), "expected no --static-graph for a GAN"),
        (TrainConfig(augment=AugmentConfig(mixup=0.2)), "expected no --mixup for a GAN"),
        (TrainConfig(augment=AugmentConfig(cutmix=0.2)), "expected no --cutmix for a GAN"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(config: TrainConfig, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        TASK.check(config, images())


def test_a_model_without_a_generator_is_refused() -> None:
    def work(ctx: DistContext) -> None:
        with pytest.raises(Mistake, match="expected a model with the parts generator and discriminator, got 0"):
            TASK.make_loaders(TrainConfig(batch_size=4), images(), ctx, nn.Sequential(nn.Flatten()))

    run_ranks(work, 1)
