"""Random changes of brightness, contrast, saturation, hue and of colour itself, of whole batches.

The definitions are those of torchvision's ColorJitter, in one order: brightness, contrast, saturation, hue, greyscale;
and values are rounded once, at the end. An image's result has the same bits in any batch: no operation here adds and
multiplies in one instruction, and the only sums over an image are of whole numbers.
"""

import torch
from torch import Tensor

from ddp.augment_config import AugmentConfig
from ddp.draws import Draws, Stream


def recoloured(images: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Apply what the options ask for. uint8 [N, C, H, W] -> the same, new. Of one channel, it has no colours."""
    coloured = images.size(1) == 3
    values = images.to(torch.float32)
    if config.brightness:
        values = brightened(values, _factors(draws, Stream.BRIGHTNESS, config.brightness))
    if config.contrast:
        values = contrasted(values, _factors(draws, Stream.CONTRAST, config.contrast))
    if config.saturation and coloured:
        values = saturated(values, _factors(draws, Stream.SATURATION, config.saturation))
    if config.hue and coloured:
        turn = draws.uniform(Stream.HUE) * (2 * config.hue) - config.hue
        values = hue_turned(values, turn.view(-1, 1, 1))
    if config.greyscale and coloured:
        chosen = draws.uniform(Stream.GREYSCALE) < config.greyscale
        values = torch.where(chosen.view(-1, 1, 1, 1), greyscale(values), values)
    return values.round_().to(torch.uint8)


def _factors(draws: Draws, stream: Stream, spread: float) -> Tensor:
    """Uniform in [1 - spread, 1 + spread], without negative ones. -> float32 [N, 1, 1, 1]."""
    lowest = max(0.0, 1 - spread)
    return (draws.uniform(stream) * (1 + spread - lowest) + lowest).view(-1, 1, 1, 1)


def _blended(values: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    return (values * factors + others * (1 - factors)).clamp_(0, 255)


def greyscale(values: Tensor) -> Tensor:
    """Luminance in the weights of ITU-R BT.601. float32 [N, 3 or 1, H, W] -> [N, 1, H, W]."""
    if values.size(1) == 1:
        return values
    red, green, blue = values.split(1, dim=1)
    return red * 0.2989 + green * 0.587 + blue * 0.114


def brightened(values: Tensor, factors: Tensor) -> Tensor:
    """Multiply by factors. float32 [N, C, H, W] in [0, 255], [N, 1, 1, 1] -> [N, C, H, W]."""
    return (values * factors).clamp_(0, 255)


def contrasted(values: Tensor, factors: Tensor) -> Tensor:
    """Blend with, or away from, the mean luminance. float32 [N, C, H, W] in [0, 255], [N, 1, 1, 1] -> [N, C, H, W]."""
    luminance = (greyscale(values) * 256).floor()
    # A float64 sum of whole numbers is exact in any order, so it does not matter how the work is cut up.
    mean = luminance.sum((1, 2, 3), keepdim=True, dtype=torch.float64) / (256 * values.size(2) * values.size(3))
    return _blended(values, mean.to(torch.float32), factors)


def saturated(values: Tensor, factors: Tensor) -> Tensor:
    """Blend with, or away from, the luminance. float32 [N, 3, H, W] in [0, 255], [N, 1, 1, 1] -> [N, 3, H, W]."""
    return _blended(values, greyscale(values), factors)


def hue_turned(values: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of the HSV model. float32 [N, 3, H, W], [N, 1, 1] as share of the circle -> [N, 3, H, W].

    Source: Smith, "Color gamut transform pairs", 1978; back to RGB by one formula for all sextants of the circle.
    """
    lowest, highest = values.amin(1), values.amax(1)
    red, green, blue = values.unbind(1)
    chroma = highest - lowest
    divisor = chroma + (chroma == 0)
    sextant = torch.where(
        highest == red,
        (green - blue) / divisor,
        torch.where(highest == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = sextant / 6 + turns
    channels = []
    for offset in (5, 3, 1):  # red, green, blue
        place = hue + offset / 6
        place = (place - place.floor()) * 6
        channels.append(highest - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels, dim=1)
