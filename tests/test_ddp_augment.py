"""Augmentation of whole batches, against a plain loop over single images."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from ddp.augment import Augment, Normalize, augment_for
from ddp.augment_config import AugmentConfig
from ddp.draws import random_bits
from ddp.input_config import InputConfig
from ddp.mistake import Mistake
from ddp.source import Dataset, array_split

EVERYTHING = {
    "resized_crop": (0.08, 1.0), "rotate": 30.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
    "greyscale": 0.2, "cutout": 4,
}  # fmt: skip
CHANGES = [{name: value} for name, value in EVERYTHING.items()] + [EVERYTHING]


def images_of(count: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def dataset_of(size: int = 8, stored: int = 8) -> Dataset:
    split = array_split(np.zeros((2, 3, stored, stored), np.uint8), [0, 1])
    shapes: Any = {"shape": (3, size, size), "stored": (3, stored, stored)}
    return Dataset(train=split, test=split, classes=("a", "b"), mean=(0.0, 0.5, 1.0), std=(1.0,) * 3, **shapes)


def test_what_happens_to_an_image_depends_on_nothing_but_seed_epoch_and_index() -> None:
    augment = Augment(size=8, padding=2, flip=True, seed=3)
    images, indices = images_of(40), torch.randperm(40)
    together = augment(images[indices], indices, epoch=5)
    for position, index in enumerate(indices):
        alone = augment(images[index : index + 1], index.view(1), epoch=5)
        assert torch.equal(alone[0], together[position])
    assert not torch.equal(together, augment(images[indices], indices, epoch=6))
    assert not torch.equal(together, Augment(size=8, padding=2, flip=True, seed=4)(images[indices], indices, 5))


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
    crops = augment(image.expand(2000, -1, -1, -1), indices, epoch=1)
    counts = {where: int((crops == window).flatten(1).all(1).sum()) for where, window in windows.items()}
    assert sum(counts.values()) == 2000
    assert min(counts.values()) > 60  # 111 expected of each of 18; below 60 is 5 standard deviations


def test_a_stored_margin_is_cropped_and_evaluation_takes_the_centre() -> None:
    images = images_of(5, size=12)
    crop = Augment(size=8, random=False)(images, torch.arange(5), epoch=1)
    assert torch.equal(crop, images[:, :, 2:10, 2:10])
    assert Augment(size=8)(images, torch.arange(5), epoch=1).shape == (5, 3, 8, 8)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalisation_takes_out_mean_and_standard_deviation(memory_format: torch.memory_format) -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
    normalize = Normalize(scale=1 / (255 * std), shift=-mean / std, memory_format=memory_format)
    images = images_of(4)
    out = normalize(images)
    torch.testing.assert_close(out, (images / 255 - mean) / std)
    assert out.is_contiguous(memory_format=memory_format)


def test_windows_and_flips_come_from_the_bits_they_always_came_from() -> None:
    images, indices = images_of(50, size=10), torch.arange(50)
    out = Augment(size=8, padding=2, flip=True, seed=3)(images, indices, 7)
    for position in range(50):
        bits = int(random_bits(3, 7, indices[position : position + 1])) & (2**64 - 1)
        top, left = ((bits & 0xFFFF) * 7) >> 16, ((bits >> 16 & 0xFFFF) * 7) >> 16
        window = pad(images[position], (2,) * 4)[:, top : top + 8, left : left + 8]
        assert torch.equal(out[position], window.flip(2) if bits >> 32 & 1 else window)


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "+".join(changes))
def test_every_change_gives_an_image_the_same_bits_in_any_batch(changes: dict[str, Any]) -> None:
    augment = Augment(size=15, padding=2, flip=True, seed=3, changes=AugmentConfig(**changes), fill=(120, 110, 100))
    indices = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    images = images_of(37, size=17)[indices]
    before = images.clone()
    together = augment(images, indices, 5)
    assert together.dtype == torch.uint8
    assert together.shape == (37, 3, 15, 15)
    assert torch.equal(augment(images, indices, 5), together)
    for size in (1, 2, 5, 16):
        parts = [augment(*part, 5) for part in zip(images.split(size), indices.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), together)
    assert torch.equal(augment(images.to(memory_format=torch.channels_last), indices, 5), together)
    assert torch.equal(images, before)
    plain = Augment(size=15, padding=2, flip=True, seed=3)
    assert not torch.equal(together, plain(images, indices, 5))
    # Another epoch or seed draws anew, also where only this change is random.
    alone = Augment(size=15, random=False, seed=3, changes=augment.changes, fill=augment.fill)
    other = Augment(size=15, random=False, seed=4, changes=augment.changes, fill=augment.fill)
    assert not torch.equal(alone(images, indices, 5), alone(images, indices, 6))
    assert not torch.equal(alone(images, indices, 5), other(images, indices, 5))


def test_the_number_of_threads_changes_no_bit() -> None:
    augment = Augment(size=32, padding=4, flip=True, changes=AugmentConfig(**EVERYTHING), fill=(120, 110, 100))
    images, indices, threads = images_of(200, size=32), torch.arange(200), torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(augment(images, indices, 1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_options_decide_what_is_done_in_training_and_nothing_is_in_evaluation() -> None:
    changes = AugmentConfig(hue=0.1, cutout=3)
    made = augment_for(InputConfig(), changes, dataset_of(), 5, train=True)
    assert made == Augment(size=8, padding=1, flip=True, seed=5, changes=changes, fill=(0, 128, 255))
    none = augment_for(InputConfig(augment="none"), changes, dataset_of(), 5, train=True)
    assert (none.random, none.changes) == (False, changes)
    tested = augment_for(InputConfig(), changes, dataset_of(8, 10), 5, train=False)
    images = images_of(5, size=10)
    assert torch.equal(tested(images, torch.arange(5), 1), images[:, :, 1:9, 1:9])
    assert augment_for(InputConfig(), changes, dataset_of(8, 10), 5, train=True).padding == 0
    with pytest.raises(Mistake, match="expected --cutout of at most the images' 8 pixels, got 9; try 2"):
        augment_for(InputConfig(), AugmentConfig(cutout=9), dataset_of(), 5, train=True)


def test_without_shifts_and_flips_only_what_is_asked_for_is_done() -> None:
    images, indices = images_of(20, size=10), torch.arange(20)
    centre = images[:, :, 1:9, 1:9]
    changed = Augment(size=8, padding=2, flip=True, random=False, changes=AugmentConfig(cutout=2), fill=(0, 0, 0))
    out = changed(images, indices, 0)
    blank = (out == 0).all(1, keepdim=True)
    assert torch.equal(torch.where(blank, 0, centre), out)
    # A resized crop of nearly everything, in the place of the shift, is nearly the image itself, and is flipped too.
    smooth = torch.arange(0, 160, 5, dtype=torch.uint8).expand(40, 3, 32, 32).contiguous()
    config = AugmentConfig(resized_crop=(0.9999, 1.0))
    for flip in (False, True):
        out = Augment(size=32, padding=8, flip=flip, changes=config)(smooth, torch.arange(40), 0)
        same = (out.int() - smooth.int()).abs().flatten(1).max(1).values <= 1
        mirrored = (out.int() - smooth.flip(3).int()).abs().flatten(1).max(1).values <= 1
        assert (same | mirrored).float().mean() > 0.8
        assert bool(mirrored.any()) == flip


def test_a_crop_is_turned_by_the_angle_that_the_whole_image_would_be() -> None:
    images, indices = images_of(30, size=16), torch.arange(30)
    crop, both = AugmentConfig(resized_crop=(0.9999, 1.0)), AugmentConfig(resized_crop=(0.9999, 1.0), rotate=90.0)
    turned, cropped, wholly = (
        Augment(size=16, random=False, changes=changes)(images, indices, 0)
        for changes in (both, crop, AugmentConfig(rotate=90.0))
    )
    whole = (cropped == images).flatten(1).all(1)
    assert whole.any()
    assert torch.equal(turned[whole], wholly[whole])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resized_crop": (0.5,)}, "expected two rising shares in (0, 1] as --resized-crop, got 0.5; try 0.08,1"),
        ({"resized_crop": (1.0, 0.5)}, "got 1.0,0.5"),
        ({"resized_crop": (0.0, 0.5)}, "got 0.0,0.5"),
        ({"resized_crop": (0.5, 1.5)}, "got 0.5,1.5"),
        ({"rotate": 181.0}, "--rotate in [0, 180] degrees, got 181.0"),
        ({"brightness": -0.1}, "--brightness of at least 0, got -0.1"),
        ({"contrast": float("inf")}, "a finite --contrast"),
        ({"saturation": float("nan")}, "a finite --saturation"),
        ({"hue": 0.6}, "--hue in [0, 0.5]"),
        ({"greyscale": 1.1}, "--greyscale in [0, 1]"),
        ({"cutout": -1}, "--cutout of at least 0"),
        ({"mixup": -1.0}, "--mixup of at least 0"),
        ({"cutmix": float("inf")}, "a finite --cutmix"),
        ({"mixup": 0.2, "cutmix": 1.0}, "expected --mixup or --cutmix, got --mixup 0.2 and --cutmix 1.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake) as raised:
        AugmentConfig(**options)
    assert message in str(raised.value)
