"""Colour changes of batches, against torchvision's functions on single images."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from ddp.augment_colour import brightened, contrasted, greyscale, hue_turned, recoloured, saturated
from ddp.augment_config import AugmentConfig
from ddp.draws import Draws, Stream

Change = Callable[[Tensor, Tensor], Tensor]
Single = Callable[[Tensor, float], Tensor]


def images_of(count: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, 9, 7), generator=generator, dtype=torch.uint8)
    images[0], images[1], images[2, :1] = 0, 255, 77  # black, white, and one of equal reds
    images[3] = images[3, :1]  # without colours, but not without brightness
    return images


def numbers_of(count: int, lowest: float, highest: float) -> Tensor:
    return torch.linspace(lowest, highest, count)[torch.randperm(count, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(
    ("change", "single", "lowest", "highest", "channels"),
    [
        (brightened, functional.adjust_brightness, 0.0, 2.0, 3),
        (brightened, functional.adjust_brightness, 0.0, 2.0, 1),
        (contrasted, functional.adjust_contrast, 0.0, 2.0, 3),
        (contrasted, functional.adjust_contrast, 0.0, 2.0, 1),
        (saturated, functional.adjust_saturation, 0.0, 2.0, 3),
        (hue_turned, functional.adjust_hue, -0.5, 0.5, 3),
    ],
)
def test_each_change_is_that_of_torchvision(
    change: Change, single: Single, lowest: float, highest: float, channels: int
) -> None:
    images, numbers = images_of(64, channels), numbers_of(64, lowest, highest)
    values = change(images.float(), numbers.view(-1, 1, 1) if change is hue_turned else numbers.view(-1, 1, 1, 1))
    for position, image in enumerate(images):
        exact = single(image / 255, float(numbers[position])) * 255
        assert (values[position] - exact).abs().max() < 0.01
        if change is not saturated:  # of whole numbers, torchvision truncates the luminance before it blends
            levels = single(image, float(numbers[position]))
            assert (values[position].round() - levels).abs().max() <= 1


def test_greyscale_is_that_of_torchvision() -> None:
    images = images_of(20)
    grey = greyscale(images.float())
    assert (grey - functional.rgb_to_grayscale(images / 255) * 255).abs().max() < 0.01
    assert (grey.round() - functional.rgb_to_grayscale(images)).abs().max() <= 1


def test_changes_come_in_their_order_and_are_rounded_once() -> None:
    config = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    images, draws = images_of(64), Draws(0, 0, torch.arange(64))
    out = recoloured(images, draws, config)
    streams = (Stream.BRIGHTNESS, Stream.CONTRAST, Stream.SATURATION)
    factors = [draws.uniform(stream).double() * 0.8 + 0.6 for stream in streams]
    turns = draws.uniform(Stream.HUE).double() * 0.2 - 0.1
    for position, image in enumerate(images):
        single = image / 255
        single = functional.adjust_brightness(single, float(factors[0][position]))
        single = functional.adjust_contrast(single, float(factors[1][position]))
        single = functional.adjust_saturation(single, float(factors[2][position]))
        single = functional.adjust_hue(single, float(turns[position]))
        assert (out[position].float() - single * 255).abs().max() < 0.52


def test_factors_reach_both_ends_but_not_below_zero() -> None:
    image = torch.full((5000, 1, 1, 1), 100, dtype=torch.uint8)
    out = recoloured(image, Draws(0, 0, torch.arange(5000)), AugmentConfig(brightness=0.5)).double() / 100
    assert (float(out.min()), float(out.max())) == (0.5, 1.5)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    wide = recoloured(image, Draws(0, 0, torch.arange(5000)), AugmentConfig(brightness=1.5)).double() / 100
    assert float(wide.mean()) == pytest.approx(1.25, abs=0.05)  # uniform in [0, 2.5], of which 2.55 would be white


def test_as_many_images_lose_their_colours_as_asked_for() -> None:
    images = images_of(5)[4:].expand(4000, -1, -1, -1).clone()
    images[:, 0] = 255
    out = recoloured(images, Draws(0, 0, torch.arange(4000)), AugmentConfig(greyscale=0.3))
    grey = (out[:, 0] == out[:, 1]).flatten(1).all(1) & (out[:, 0] == out[:, 2]).flatten(1).all(1)
    assert float(grey.float().mean()) == pytest.approx(0.3, abs=5 * (0.21 / 4000) ** 0.5)
    assert torch.equal(out[~grey], images[~grey])


def test_an_image_of_one_channel_has_no_colours_to_change() -> None:
    images = images_of(20, channels=1)
    config = AugmentConfig(saturation=0.9, hue=0.5, greyscale=1.0)
    assert torch.equal(recoloured(images, Draws(0, 0, torch.arange(20)), config), images)
