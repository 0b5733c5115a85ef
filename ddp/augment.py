"""Whole batches of uint8 images to normalised floats, with random shifts and flips, on the device.

What happens to an image is a function of (seed, epoch, its index in the data set): not of the rank that holds it, the
number of ranks or loader processes, or what was drawn before.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddp.augment_colour import recoloured
from ddp.augment_config import AugmentConfig
from ddp.augment_geometry import cut_out, random_boxes, random_turns, warped
from ddp.draws import Draws, Stream, shifted
from ddp.input_config import InputConfig
from ddp.mistake import require
from ddp.source import UNKNOWN, Dataset


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How a stored image becomes what the model sees: crop or shift, flip, rotation, colours, cutout, in this order."""

    size: int
    """Height and width that the model sees."""
    padding: int = 0
    """Black border added before a random shift, in pixels."""
    flip: bool = False
    random: bool = True
    """False: no shift, but the centre crop; and no flip."""
    seed: int = 0
    changes: AugmentConfig = field(default_factory=AugmentConfig)
    """The further random changes; mixup and cutmix are not made here, but by ddp/mixing.py."""
    fill: tuple[int, ...] = ()
    """What cutout fills each channel with."""
    planes: int = 0
    """Channels behind those of the image, which hold masks: they move with the image, and keep their values."""

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Stored uint8 [N, C, H, W] of samples int64 [N], both on one device -> uint8 [N, C, size, size]."""
        changes, draws = self.changes, Draws(self.seed, epoch, indices)
        bits = draws.bits(Stream.SHIFT_AND_FLIP) if self.random else None
        if changes.resized_crop:
            boxes = random_boxes(draws, images.size(2), images.size(3), changes.resized_crop)
            turns = random_turns(draws, changes.rotate) if changes.rotate else None
            images = warped(images, self.size, boxes, turns)
        else:
            images = self._shifted(images, bits)
            if changes.rotate:
                images = warped(images, self.size, None, random_turns(draws, changes.rotate))
        if self.flip and bits is not None:
            position = torch.arange(len(images), device=images.device)
            mirrored = shifted(bits, 32) & 1
            images = torch.cat([images, images.flip(3)]).index_select(0, position + len(images) * mirrored)
        if not (changes.recolours or changes.cutout):
            return images
        images, masks = images.tensor_split([images.size(1) - self.planes], dim=1)
        if changes.recolours:
            images = recoloured(images, draws, changes)
        if changes.cutout:
            images = cut_out(images, draws, changes.cutout, self.fill)
        return torch.cat([images, masks], dim=1) if self.planes else images

    def _shifted(self, images: Tensor, bits: Tensor | None) -> Tensor:
        """A window of `size` pixels, at random or in the centre. uint8 [N, C, H, W], int64 [N] or None."""
        padding = 0 if bits is None else self.padding
        choices = images.size(2) + 2 * padding - self.size + 1
        if bits is None:
            start = (choices - 1) // 2
            return images[:, :, start : start + self.size, start : start + self.size]
        if choices > 1:
            if padding:
                images = self._padded(images, padding)
            top = ((bits & 0xFFFF) * choices) >> 16
            left = ((shifted(bits, 16) & 0xFFFF) * choices) >> 16
            images = _windows(images, top, left, self.size)
        return images

    def _padded(self, images: Tensor, padding: int) -> Tensor:
        """A black border, which masks call unknown."""
        images = pad(images, (padding,) * 4)
        if self.planes:
            inside = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
            inside[padding:-padding, padding:-padding] = True
            images[:, -self.planes :, ~inside] = UNKNOWN
        return images


def augment_for(config: InputConfig, augment: AugmentConfig, dataset: Dataset, seed: int, *, train: bool) -> Augment:
    """The augmentation that the options ask for; `auto` is what suits the data set: of classes, shifts. Raises Mistake.

    `--augment none` leaves out shifts and flips, not what `augment` names. Not in training: the centre crop, no more.
    """
    if dataset.train.inputs is not None:
        return Augment(size=0, random=False)  # never called: numbers are taken as they are
    size, stored = dataset.shape[1], dataset.stored[1]
    default_padding = size // 8 if stored == size and not dataset.planes and dataset.train.labels.ndim == 1 else 0
    padding = default_padding if config.crop_padding is None else config.crop_padding
    require(
        augment.cutout <= size,
        f"--cutout of at most the images' {size} pixels",
        augment.cutout,
        f"try {size // 4 or 1}",
    )
    return Augment(
        size=size,
        padding=padding,
        flip=config.augment == "crop-flip" or (config.augment == "auto" and dataset.flip),
        random=train and config.augment != "none",
        seed=seed,
        changes=augment if train else AugmentConfig(),
        fill=tuple(round(255 * mean) for mean in dataset.mean),
        planes=dataset.planes,
    )


def _windows(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """One window of each image. images [N, C, H, W], top and left int64 [N] -> [N, C, size, size].

    A view of the memory in which every row of `size` pixels, at any place, is a row: one index_select then copies whole
    rows, which on a CPU is several times faster than indexing with top and left.
    """
    images = images.contiguous()
    count, channels, height, width = images.shape
    device = images.device
    rows = images.as_strided((images.numel() - size + 1, size), (1, 1))
    first = torch.arange(count, device=device) * (channels * height * width) + top * width + left
    within = torch.arange(channels, device=device).view(-1, 1) * (height * width)
    within = within + torch.arange(size, device=device) * width
    return rows.index_select(0, (first.view(-1, 1, 1) + within).view(-1)).view(count, channels, size, size)


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """uint8 in [0, 255] to float32 with the data set's mean and standard deviation taken out, in one pass."""

    scale: Tensor
    """float32 [1, C, 1, 1] = 1 / (255 std)."""
    shift: Tensor
    """float32 [1, C, 1, 1] = -mean / std."""
    memory_format: torch.memory_format

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, C, H, W]."""
        if self.memory_format != torch.channels_last:
            return images.to(torch.float32).mul_(self.scale).add_(self.shift)
        # Whole rows of pixels at a time: three values per pixel are too short a run for a CPU's vector units.
        count, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).to(torch.float32)
        rows.mul_(self.scale.view(-1).repeat(width)).add_(self.shift.view(-1).repeat(width))
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def normalize_for(dataset: Dataset, device: torch.device, memory_format: torch.memory_format) -> Normalize:
    """The normalisation of a data set, on a device."""
    mean = torch.tensor(dataset.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(dataset.std, device=device).view(1, -1, 1, 1)
    return Normalize(scale=1 / (255 * std), shift=-mean / std, memory_format=memory_format)
