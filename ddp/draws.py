"""Random numbers that are a function of (seed, epoch, sample index, stream) alone: no generator, no state, any device.

So what happens to a sample depends neither on the rank that holds it nor on the batch it is in.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

GOLDEN_RATIO = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
STREAM_STEP = 0xD1342543DE82EF95
MASK_64 = (1 << 64) - 1


class Stream(IntEnum):
    """What a random number is for: numbers of different streams are independent."""

    SHIFT_AND_FLIP = 0
    CROP_SIZE = 1
    CROP_TOP = 2
    CROP_LEFT = 3
    ROTATE = 4
    BRIGHTNESS = 5
    CONTRAST = 6
    SATURATION = 7
    HUE = 8
    GREYSCALE = 9
    CUTOUT_ROW = 10
    CUTOUT_COLUMN = 11
    PARTNER = 12
    MIX_SHARE = 13
    MIX_ROW = 14
    MIX_COLUMN = 15


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as the int64 that torch can hold."""
    value &= MASK_64
    return value - (1 << 64) if value >> 63 else value


def shifted(bits: Tensor, places: int) -> Tensor:
    """Logical right shift of int64; torch's own keeps the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def random_bits(seed: int, epoch: int, indices: Tensor, stream: int = 0) -> Tensor:
    """64 random bits for each sample. indices int64, any shape -> int64 of that shape.

    Source: SplitMix64; Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    key = (seed * MIX_1 + (epoch + 1) * MIX_2 + stream * STREAM_STEP) & MASK_64
    bits = indices * _signed(GOLDEN_RATIO) + _signed(key)  # int64 arithmetic wraps around, as intended
    for places, factor in ((30, MIX_1), (27, MIX_2)):
        bits = (bits ^ shifted(bits, places)) * _signed(factor)
    return bits ^ shifted(bits, 31)


@dataclass(frozen=True)
class Draws:
    """The random numbers of some samples in one epoch."""

    seed: int
    epoch: int
    indices: Tensor
    """int64 [N], on the device where the numbers are wanted."""

    def bits(self, stream: Stream) -> Tensor:
        """64 random bits for each sample. -> int64 [N]."""
        return random_bits(self.seed, self.epoch, self.indices, stream)

    def attempts(self, stream: Stream, count: int) -> Tensor:
        """64 random bits for each of `count` attempts of each sample. -> int64 [N, count]."""
        attempt = torch.arange(count, device=self.indices.device)
        return random_bits(self.seed, self.epoch, self.indices.view(-1, 1) * count + attempt, stream)

    def uniform(self, stream: Stream) -> Tensor:
        """Uniform in [0, 1), in steps of 2^-24, which float32 holds exactly. -> float32 [N]."""
        return shifted(self.bits(stream), 40).to(torch.float32) * 2**-24

    def below(self, stream: Stream, count: int | Tensor) -> Tensor:
        """Whole numbers from 0 up to, but without, `count`: one number below 2^31 or int64 [N]. -> int64 [N]."""
        return (shifted(self.bits(stream), 32) * count) >> 32
