"""Reconstruction: gradients and scores that do not depend on the number of ranks."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from ddp.augment_config import AugmentConfig
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.mistake import Mistake
from ddp.noise import Use, normal
from ddp.optim_config import OptimConfig
from ddp.task import Task
from ddp.tasks.reconstruction import TASK, outputs, sample_losses
from models.autoencoder import Autoencoder, Vae
from tests.generative_runs import Build, images, largest_difference, outcome, shared_batch, steps, trainer_for
from tests.ranks import run_ranks

SHAPE = (1, 4, 4)


def plain() -> nn.Module:
    return Autoencoder(SHAPE, hidden=8, code=3)


def variational() -> nn.Module:
    return Vae(SHAPE, hidden=8, code=3)


@pytest.mark.parametrize("build", [plain, variational])
def test_ranks_train_what_one_process_trains_on_all_samples(build: Build) -> None:
    """Breaks if the noise of the code depends on who holds a sample, or a rank's mean is taken for the batch's."""
    (expected,) = steps(1, TASK, build, SHAPE)
    assert any(name.startswith("gradient") for name in expected)
    for ranks in (2, 3):
        for found in steps(ranks, TASK, build, SHAPE):
            assert largest_difference(found, expected) < 1e-10


def test_the_loss_of_a_variational_auto_encoder_is_the_negative_bound_but_for_scale_and_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, out = (torch.randn(6, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    kl = torch.rand(6, generator=generator, dtype=torch.float64)
    values = inputs[0].numel()
    log_likelihood = torch.distributions.Normal(out, 1).log_prob(inputs).flatten(1).sum(1)
    constant = values / 2 * np.log(2 * np.pi)
    expected = (-(log_likelihood - kl) - constant) * 2 / values
    torch.testing.assert_close(sample_losses(out, kl, inputs), expected)


def test_the_noise_is_of_seed_step_and_sample_and_normally_distributed() -> None:
    numbers = normal(1, 2, torch.arange(4000), 5, Use.LATENT)
    assert numbers.shape == (4000, 5)
    assert abs(float(numbers.mean())) < 0.02
    assert abs(float(numbers.std()) - 1) < 0.02
    assert float(numbers.T.corrcoef().fill_diagonal_(0).abs().max()) < 0.06
    assert abs(float((numbers.abs() < 1).float().mean()) - 0.6827) < 0.01
    torch.testing.assert_close(normal(1, 2, torch.tensor([7, 3]), 5, Use.LATENT), numbers[[7, 3]], rtol=0, atol=0)
    for other in ((2, 2, Use.LATENT), (1, 3, Use.LATENT), (1, 2, Use.GENERATOR)):
        assert not torch.equal(normal(other[0], other[1], torch.arange(4000), 5, other[2]), numbers)


def test_every_step_has_its_own_noise() -> None:
    def work(ctx: DistContext) -> list[float]:
        trainer = trainer_for(ctx, TASK, variational)
        batch = shared_batch(ctx, TASK, SHAPE)
        losses = []
        for _ in range(2):
            losses += [float(TASK.losses(trainer, batch).sum().detach()) for _ in range(2)]
            trainer.scheduler.step()
        return losses

    (losses,) = run_ranks(work, 1)
    assert losses[0] == losses[1] != losses[2] == losses[3]


def fixed() -> nn.Module:
    """Always the mean of the test images, so that nothing is explained."""
    dataset = images()
    pixels = torch.stack([torch.from_numpy(dataset.test.read(index)) for index in range(len(dataset.test))])
    mean = ((pixels.double() / 255 - 0.3) / 0.4).mean(0)

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Parameter(mean.float())

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.image.expand_as(inputs)

    return Fixed()


class Scaled(nn.Module):
    """Its input, a tenth too small."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.9))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.factor


def test_the_score_is_the_explained_share_of_the_distance_from_the_mean_image() -> None:
    dataset = images()
    pixels = np.stack([dataset.test.read(index) for index in range(len(dataset.test))]) / 255
    inputs = (pixels - 0.3) / 0.4
    (nothing,) = outcome(1, TASK, fixed, dataset)
    (most,) = outcome(1, TASK, Scaled, dataset)
    assert nothing.score == pytest.approx(0, abs=1e-6)
    error, distance = np.mean((0.1 * inputs) ** 2), np.mean((inputs - inputs.mean(0)) ** 2)
    assert most.score == pytest.approx(1 - error / distance, rel=1e-5)
    assert most.numbers["test_error"] == pytest.approx(error, rel=1e-5)
    assert most.numbers["test_samples"] == 37


class Wild(nn.Module):
    """Errors of very different sizes, so that the order of a sum shows in its last bits."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.tensor(10.0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        levels = inputs.mean(dim=(1, 2, 3), keepdim=True)
        return inputs * self.base ** (60 * (levels - levels[:1]))


@pytest.mark.parametrize("build", [Wild, lambda: Vae((1, 16, 16), 8, 3)])
def test_the_score_is_the_same_to_the_bit_at_any_number_of_ranks(build: Build) -> None:
    found = [each for ranks in (1, 2, 3, 4) for each in outcome(ranks, TASK, build, images())]
    assert len(found) == 10
    assert all(asdict(each) == asdict(found[0]) for each in found)


def test_what_is_no_reconstruction_is_refused() -> None:
    with pytest.raises(Mistake, match=r"expected a reconstruction of shape \(2, 1, 4, 4\).*got \(2, 10\)"):
        outputs(torch.zeros(2, 10), torch.zeros(2, *SHAPE))


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (TrainConfig(optim=OptimConfig(label_smoothing=0.1)), "--label-smoothing"),
        (TrainConfig(augment=AugmentConfig(mixup=0.2)), "--mixup"),
        (TrainConfig(augment=AugmentConfig(cutmix=1)), "--cutmix"),
    ],
)
def test_options_of_labels_are_refused(config: TrainConfig, flag: str) -> None:
    task: Task = TASK
    with pytest.raises(Mistake, match=f"expected no {flag} for an auto-encoder"):
        task.check(config, images())
