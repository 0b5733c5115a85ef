"""Losses of a class for every pixel, over the pixels of all ranks together.

The loop takes the mean over the samples of all ranks; what is here is written so that this is the mean over pixels, and
the Dice loss of the whole batch, however samples and unknown pixels are shared.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from ddp.context import DistContext
from ddp.source import UNKNOWN

SMOOTH = 1.0
"""Pixels added above and below in Dice's ratio, so that a class of few pixels does not jump between 0 and 1."""


def _precise(logits: Tensor) -> Tensor:
    """At least float32: what is small would be lost in sums of many pixels in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pixel_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of each pixel in nats, [N, H, W]; 0 where the truth is unknown.

    logits [N, classes, H, W], truth int64 [N, H, W].
    """
    return cross_entropy(_precise(logits), truth, reduction="none", ignore_index=UNKNOWN)


def dice_sums(logits: Tensor, truth: Tensor) -> Tensor:
    """Three sums over known pixels for each class, [3, classes]: shared, predicted and true.

    Predicted are the probabilities of the class, true its pixels, shared the probabilities in its pixels.
    """
    known = (truth != UNKNOWN).unsqueeze(1)
    predicted = _precise(logits).softmax(1) * known
    true = one_hot(truth.masked_fill(truth == UNKNOWN, 0), logits.shape[1]).movedim(3, 1).to(predicted.dtype) * known
    return torch.stack([each.sum((0, 2, 3)) for each in (predicted * true, predicted, true)])


def dice_loss(sums: Tensor) -> Tensor:
    """1 - Dice's ratio, (2 shared + 1) / (predicted + true + 1), mean over the classes that occur; 0 if none does.

    sums [3, classes] as `dice_sums` gives them. Source: Milletari et al., "V-Net", 2016, per class; the 1 as in Keras'
    and many others' implementations.
    """
    shared, predicted, true = sums
    occurs = true > 0
    losses = 1 - (2 * shared + SMOOTH) / (predicted + true + SMOOTH)
    return (losses * occurs).sum() / occurs.sum().clamp(min=1)


def global_dice(logits: Tensor, truth: Tensor, ctx: DistContext, global_count: int) -> Tensor:
    """Dice loss of all ranks' pixels together, as losses of this rank's samples, [N]. Every rank must call this.

    Each loss has the value of the whole; their gradients are such that the loop's mean over all samples, of which there
    are `global_count`, has the gradient of the whole.
    """
    mine = dice_sums(logits, truth)
    others = ctx.sum(mine.detach().clone()) - mine.detach()
    whole = dice_loss(mine + others)
    value = whole.detach()
    return (value + (whole - value) * (global_count / len(truth))).expand(len(truth))
