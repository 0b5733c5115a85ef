"""Auto-encoders, adversarial and deep Q-networks: sizes, and what is particular to each."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from models.autoencoder import Vae
from models.dcgan import Dcgan, dcgan, dcgan_digits
from models.dqn import dqn_mlp, dqn_nature
from models.spec import ModelMistake, ModelSpec, Shape


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_parts_have_the_sizes_of_their_papers() -> None:
    with torch.device("meta"):
        gan, nature = dcgan.build((3, 64, 64), 10), dqn_nature.build((4, 84, 84), 4)
    assert isinstance(gan, Dcgan)
    assert (count(gan.generator), count(gan.discriminator)) == (3_576_704, 2_765_568)
    assert [count(part) for part in nature.children()] == [1_686_180, 1_686_180]


def test_the_divergence_is_that_of_the_codes_distribution_and_noise_moves_the_code() -> None:
    torch.manual_seed(0)
    model = Vae((1, 3, 3), hidden=8, code=4).double()
    images, noise = torch.randn(5, 1, 3, 3).double(), torch.randn(5, 4).double()
    features = model.encoder(images)
    code = Normal(model.mean(features), (model.log_variance(features) / 2).exp())
    expected = kl_divergence(code, Normal(torch.zeros(4).double(), torch.ones(4).double())).sum(1)
    torch.testing.assert_close(model(images)["kl"], expected)
    torch.testing.assert_close(model(images, noise)["out"], model.decoder(code.mean + code.stddev * noise))
    torch.testing.assert_close(model(images)["out"], model.decoder(code.mean))


def test_a_generators_images_are_normalised_as_it_is_told() -> None:
    torch.manual_seed(0)
    generator = dcgan_digits.build((1, 16, 16), 10).get_submodule("generator")
    noise = torch.randn(6, 32)
    plain = generator(noise)
    assert plain.shape == (6, 1, 16, 16)
    assert plain.abs().max() < 1
    generator.get_buffer("mean").fill_(0.3)
    generator.get_buffer("std").fill_(0.4)
    torch.testing.assert_close(generator(noise), ((plain + 1) / 2 - 0.3) / 0.4)


def test_each_batch_is_by_itself_in_the_discriminator() -> None:
    torch.manual_seed(0)
    model = dcgan_digits.build((1, 16, 16), 10)
    discriminator = model.get_submodule("discriminator")
    real, made = torch.randn(4, 1, 16, 16), 3 * torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(discriminator(real, made), torch.cat([discriminator(real), discriminator(made)]))
    assert model(real).shape == (4,)


def test_the_target_network_starts_as_the_online_network_and_is_not_trained() -> None:
    model = dqn_mlp.build((4,), 2)
    online, target = model.get_submodule("online"), model.get_submodule("target")
    torch.testing.assert_close(target.state_dict(), online.state_dict(), rtol=0, atol=0)
    assert [each.requires_grad for each in model.parameters()] == [True] * 6 + [False] * 6
    observations = torch.randn(3, 4)
    with torch.no_grad():
        next(target.parameters()).add_(1)
    torch.testing.assert_close(model(observations), online(observations), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 36, 36), (1, 50, 84), (2, 84, 61)])
def test_the_nature_network_fits_frames_of_other_sizes(shape: Shape) -> None:
    assert dqn_nature.build(shape, 3)(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        (dcgan, (3, 32, 32), "expected images of 64x64 for dcgan, got 32x32"),
        (dcgan_digits, (1, 8, 8), "expected images of 16x16 or 32x32 for dcgan-digits, got 8x8; add --image-size 32"),
        (dcgan_digits, (1, 32, 16), "got 32x16"),
        (dcgan_digits, (4,), "got samples of 4"),
        (dqn_nature, (4, 84, 35), "expected frames of at least 36x36 for dqn-nature, got 4x84x35"),
        (dqn_nature, (4,), "got 4"),
    ],
)
def test_samples_that_do_not_fit_are_refused(spec: ModelSpec, shape: Shape, message: str) -> None:
    with pytest.raises(ModelMistake, match=message):
        spec.build(shape, 2)
