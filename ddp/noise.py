"""Standard normal numbers that models are given: a function of (seed, step, sample index, what for), of no generator.

So what a sample is given does not depend on how many ranks share the batch, nor on who has drawn before.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

from ddp.draws import random_bits, shifted


class Use(IntEnum):
    """What the numbers are for: those of different uses are independent. Goes on where draws.Stream may get to."""

    LATENT = 64
    DISCRIMINATOR = 65
    GENERATOR = 66
    EVALUATION = 67
    SAMPLES = 68


def normal(seed: int, step: int, indices: Tensor, size: int, use: Use) -> Tensor:
    """`size` numbers for each sample, by Box and Muller's method. indices int64 [N] -> float32 [N, size].

    On the device of `indices`.
    """
    pairs = (size + 1) // 2
    numbers = indices[:, None] * (2 * pairs) + torch.arange(2 * pairs, device=indices.device)
    bits = shifted(random_bits(seed, step, numbers, use), 11).to(torch.float64)  # 53 of them, which float64 holds
    radii, angles = ((bits + 0.5) * 2.0**-53).chunk(2, dim=1)
    radii, angles = (-2 * radii.log()).sqrt(), 2 * math.pi * angles
    return torch.cat([radii * angles.cos(), radii * angles.sin()], dim=1)[:, :size].to(torch.float32)
