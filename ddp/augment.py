"""Whole batches of uint8 images to normalised floats, with random shifts and flips, on the device.

What happens to an image is a function of (seed, epoch, its index in the data set): not of the rank that holds it, the
number of ranks or loader processes, or what was drawn before.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddp.source import Dataset

GOLDEN_RATIO = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK_64 = (1 << 64) - 1


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as the int64 that torch can hold."""
    value &= MASK_64
    return value - (1 << 64) if value >> 63 else value


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Logical right shift of int64; torch's own keeps the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def random_bits(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """64 random bits for each sample. indices int64 [N] -> int64 [N].

    Source: SplitMix64; Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    key = (seed * MIX_1 + (epoch + 1) * MIX_2) & MASK_64
    bits = indices * _signed(GOLDEN_RATIO) + _signed(key)  # int64 arithmetic wraps around, as intended
    for places, factor in ((30, MIX_1), (27, MIX_2)):
        bits = (bits ^ _shifted(bits, places)) * _signed(factor)
    return bits ^ _shifted(bits, 31)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How a stored image becomes what the model sees."""

    size: int
    """Height and width that the model sees."""
    padding: int = 0
    """Black border added before a random crop, in pixels."""
    flip: bool = False
    random: bool = True
    """False: the centre crop, for evaluation."""
    seed: int = 0

    def crop(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Stored uint8 [N, C, H, W] of samples int64 [N] -> uint8 [N, C, size, size]."""
        padding = self.padding if self.random else 0
        choices = images.size(2) + 2 * padding - self.size + 1
        if not self.random:
            start = (choices - 1) // 2
            return images[:, :, start : start + self.size, start : start + self.size]
        bits = random_bits(self.seed, epoch, indices)
        if choices > 1:
            if padding:
                images = pad(images, (padding,) * 4)
            top = ((bits & 0xFFFF) * choices) >> 16
            left = ((_shifted(bits, 16) & 0xFFFF) * choices) >> 16
            images = _windows(images, top, left, self.size)
        if self.flip:
            position = torch.arange(len(images), device=images.device)
            mirrored = _shifted(bits, 32) & 1
            images = torch.cat([images, images.flip(3)]).index_select(0, position + len(images) * mirrored)
        return images


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
