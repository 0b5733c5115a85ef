"""Random resized crops, rotations and blanked squares of whole batches.

An image's result has the same bits in any batch. So only additions, multiplications and square roots, which IEEE 754
rounds in one way, are done per sample; values of other functions are picked from a table that is the same in each call,
because a CPU may compute the last elements of a tensor by other instructions than the rest.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ddp.draws import Draws, Stream, shifted

ATTEMPTS = 10
ASPECT_RATIOS = (3 / 4, 4 / 3)
TABLE = 4096
"""Different angles and aspect ratios that can be drawn."""


@dataclass(frozen=True)
class Boxes:
    """One rectangle of whole pixels for each image, int64 [N] each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def random_boxes(draws: Draws, height: int, width: int, area_shares: tuple[float, ...]) -> Boxes:
    """Boxes of random area and aspect ratio (3/4 to 4/3) in images of height x width pixels.

    The first of ten draws that fits the image is taken; if none does, the whole image.
    Source: Szegedy et al., "Going deeper with convolutions", 2015, as in torchvision's RandomResizedCrop.
    """
    smallest, largest = area_shares
    bits = draws.attempts(Stream.CROP_SIZE, ATTEMPTS)
    share = shifted(bits, 40).to(torch.float32) * ((largest - smallest) * 2**-24) + smallest
    lowest, highest = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratios = torch.linspace(lowest, highest, TABLE, device=bits.device).exp()
    ratio = ratios[bits & (TABLE - 1)]
    area = share * (height * width)
    heights = (area / ratio).sqrt().round().to(torch.int64)
    widths = (area * ratio).sqrt().round().to(torch.int64)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    none = ~fits.any(1)
    box_height = heights.gather(1, first).view(-1).masked_fill(none, height)
    box_width = widths.gather(1, first).view(-1).masked_fill(none, width)
    top = draws.below(Stream.CROP_TOP, height + 1 - box_height)
    left = draws.below(Stream.CROP_LEFT, width + 1 - box_width)
    return Boxes(top, left, box_height, box_width)


def random_turns(draws: Draws, largest_degrees: float) -> Tensor:
    """Cosine and sine of an angle, uniform up to the largest either way, for each image. -> float32 [2, N]."""
    angles = torch.linspace(-largest_degrees, largest_degrees, TABLE, device=draws.indices.device) * (math.pi / 180)
    return torch.stack([angles.cos(), angles.sin()]).index_select(1, draws.below(Stream.ROTATE, TABLE))


def warped(images: Tensor, size: int, boxes: Boxes | None, turns: Tensor | None) -> Tensor:
    """A box of each image, scaled bilinearly to size x size pixels and turned counter-clockwise about its centre.

    images uint8 [N, C, H, W], turns float32 [2, N] -> uint8 [N, C, size, size]. No boxes: the whole images. A turned
    box reads what lies beside it in the image, and black beyond. Scaling down does not smooth beforehand.
    """
    height, width = images.shape[2:]
    # In each direction, -1 to 1 are the edges of the box, and later those of the image, as grid_sample has it.
    across = ((torch.arange(size, device=images.device) * 2 + 1) / size - 1).view(1, 1, size)
    down = across.view(1, size, 1)
    if turns is not None:
        cosine, sine = turns.view(2, -1, 1, 1)
        across, down = across * cosine - down * sine, across * sine + down * cosine
    if boxes is not None:
        # Unless turned, a box is read as if it were cut out first: nothing beyond the middles of its outermost pixels.
        confined = turns is None
        across = _within(across, boxes.left, boxes.width, width, confined)
        down = _within(down, boxes.top, boxes.height, height, confined)
    grid = torch.stack(torch.broadcast_tensors(across, down), dim=3)
    sampled = grid_sample(images.to(torch.float32), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round_().to(torch.uint8)


def _within(place: Tensor, start: Tensor, length: Tensor, whole: int, confined: bool) -> Tensor:
    """Places within boxes as places within the whole image, -1 to 1 each. start, length int64 [N], in pixels."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    place = place * (length / whole) + ((start * 2 + length) / whole - 1)
    if not confined:
        return place
    lowest, highest = (start * 2 + 1) / whole - 1, ((start + length) * 2 - 1) / whole - 1
    return torch.minimum(torch.maximum(place, lowest), highest)


def cut_out(images: Tensor, draws: Draws, side: int, fill: tuple[int, ...]) -> Tensor:
    """Blank a square of side x side pixels, whose centre is anywhere in the image, with one value per channel.

    images uint8 [N, C, H, W] -> the same shape, new. Near a border, less than the whole square is within the image.
    Source: DeVries, Taylor, "Improved regularization of convolutional neural networks with cutout", 2017.
    """
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for stream, dim in ((Stream.CUTOUT_ROW, 2), (Stream.CUTOUT_COLUMN, 3)):
        length = images.size(dim)
        start = draws.below(stream, length).view(-1, 1) - side // 2
        place = torch.arange(length, device=images.device)
        hit = (place >= start) & (place < start + side)
        inside = inside & hit.unsqueeze(4 - dim)
    images = images.clone()
    for channel, value in enumerate(fill):
        images[:, channel].masked_fill_(inside, value)
    return images
