"""Blends of two training samples each: mixup and CutMix.

Both the other sample and how much of it is taken are functions of seed, epoch and the first sample's index alone: the
other one is any of the whole training set, not of the batch, so that the number of ranks changes nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddp.augment_config import AugmentConfig
from ddp.draws import Draws, Stream
from ddp.mistake import require


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How samples are blended with others of the training set; one of `mixup` and `cutmix` is above 0.

    Source: Zhang et al., "mixup: beyond empirical risk minimization", 2018; Yun et al., "CutMix: regularization
    strategy to train strong classifiers with localizable features", 2019.
    """

    samples: int
    """Of the whole training set."""
    seed: int
    mixup: float = 0.0
    """Alpha of the Beta distribution of the other sample's share."""
    cutmix: float = 0.0
    """The same, before the rectangle is clipped at the image's borders."""

    def partners(self, indices: Tensor, epoch: int) -> Tensor:
        """The sample that each is blended with, never itself. int64 [N] -> int64 [N]."""
        step = Draws(self.seed, epoch, indices).below(Stream.PARTNER, self.samples - 1) + 1
        return (indices + step) % self.samples

    def blend(self, images: Tensor, others: Tensor, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Blend images with those of their partners, both float32 [N, C, H, W].

        indices: int64 [N] of the first ones, on the CPU. -> images, and the share of the others in image and label,
        float32 [N], on the images' device.
        """
        draws = Draws(self.seed, epoch, indices.cpu())
        if self.mixup:
            share = torch.from_numpy(_beta(draws, self.mixup).astype(np.float32)).to(images.device, non_blocking=True)
            weight = share.view(-1, 1, 1, 1)
            return images * (1 - weight) + others * weight, share
        height, width = images.shape[2:]
        edges, share = _rectangles(draws, self.cutmix, height, width)
        share = share.to(images.device, non_blocking=True)
        top, bottom, left, right = edges.to(images.device, non_blocking=True).view(4, -1, 1, 1, 1)
        row = torch.arange(height, device=images.device).view(-1, 1)
        column = torch.arange(width, device=images.device)
        inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        return torch.where(inside, others, images), share


def _beta(draws: Draws, alpha: float) -> np.ndarray:
    """Numbers distributed as Beta(alpha, alpha), by the inverse of its distribution function. -> float64 [N]."""
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # here, since scipy takes a while to load

    drawn: np.ndarray = betaincinv(alpha, alpha, draws.uniform(Stream.MIX_SHARE).numpy().astype(np.float64))
    return drawn


def _rectangles(draws: Draws, alpha: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rectangles of the image's shape with the drawn share of its area, about any pixel, clipped at the borders.

    -> top, bottom, left, right as int64 [4, N], and the share of the area that is left, float32 [N].
    """
    side_share = torch.from_numpy(np.sqrt(_beta(draws, alpha)))
    edges = []
    for stream, length in ((Stream.MIX_ROW, height), (Stream.MIX_COLUMN, width)):
        half = (side_share * (length / 2)).to(torch.int64)
        centre = draws.below(stream, length)
        edges += [(centre - half).clamp(min=0), (centre + half).clamp(max=length)]
    top, bottom, left, right = edges
    share = ((bottom - top) * (right - left)).to(torch.float32) / (height * width)
    return torch.stack(edges), share


def mixing_for(config: AugmentConfig, samples: int, seed: int) -> Mixing | None:
    """The blending that the options ask for, of a training set of so many samples. Raises Mistake if it is of one."""
    if not (config.mixup or config.cutmix):
        return None
    flag = f"--mixup {config.mixup}" if config.mixup else f"--cutmix {config.cutmix}"
    require(samples >= 2, f"at least 2 training samples with {flag}", samples, "use more data, or leave it 0")
    return Mixing(samples=samples, seed=seed, mixup=config.mixup, cutmix=config.cutmix)
