"""Augmentation of whole batches, against a plain loop over single images."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from ddp.augment import Augment, Normalize, random_bits


def images_of(count: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def test_random_bits_are_those_of_the_published_generator() -> None:
    # SplitMix64 seeded with 0 gives this first number; key 0 needs seed 0 and epoch -1, index 1 its first step.
    assert int(random_bits(0, -1, torch.tensor([1]))[0]) & (2**64 - 1) == 0xE220A8397B1DCDAF


def test_what_happens_to_an_image_depends_on_nothing_but_seed_epoch_and_index() -> None:
    augment = Augment(size=8, padding=2, flip=True, seed=3)
    images, indices = images_of(40), torch.randperm(40)
    together = augment.crop(images[indices], indices, epoch=5)
    for position, index in enumerate(indices):
        alone = augment.crop(images[index : index + 1], index.view(1), epoch=5)
        assert torch.equal(alone[0], together[position])
    assert not torch.equal(together, augment.crop(images[indices], indices, epoch=6))
    assert not torch.equal(together, Augment(size=8, padding=2, flip=True, seed=4).crop(images[indices], indices, 5))


def test_every_crop_is_a_window_of_the_padded_image_and_all_windows_occur() -> None:
    augment = Augment(size=8, padding=1, flip=True)
    image = images_of(1)
    windows = {}
    for flip in (False, True):
        for top in range(3):
            for left in range(3):
                window = pad(image, (1,) * 4)[0, :, top : top + 8, left : left + 8]
                windows[(top, left, flip)] = window.flip(2) if flip else window
    indices = torch.arange(2000)
    crops = augment.crop(image.expand(2000, -1, -1, -1), indices, epoch=1)
    counts = {where: int((crops == window).flatten(1).all(1).sum()) for where, window in windows.items()}
    assert sum(counts.values()) == 2000
    assert min(counts.values()) > 60  # 111 expected of each of 18; below 60 is 5 standard deviations


def test_a_stored_margin_is_cropped_and_evaluation_takes_the_centre() -> None:
    images = images_of(5, size=12)
    crop = Augment(size=8, random=False).crop(images, torch.arange(5), epoch=1)
    assert torch.equal(crop, images[:, :, 2:10, 2:10])
    assert Augment(size=8).crop(images, torch.arange(5), epoch=1).shape == (5, 3, 8, 8)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalisation_takes_out_mean_and_standard_deviation(memory_format: torch.memory_format) -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
    normalize = Normalize(scale=1 / (255 * std), shift=-mean / std, memory_format=memory_format)
    images = images_of(4)
    out = normalize(images)
    torch.testing.assert_close(out, (images / 255 - mean) / std)
    assert out.is_contiguous(memory_format=memory_format)
