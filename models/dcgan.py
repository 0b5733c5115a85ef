"""Deep convolutional GANs: a generator of images, and a discriminator of real and made ones."""

import torch
from torch import Tensor, nn

from models.spec import ModelMistake, Shape, model

SOURCE = "Radford, Metz, Chintala, 'Unsupervised representation learning with deep convolutional GANs', 2016"
STD = 0.02
"""Standard deviation of the first weights. Source: the paper, section 3."""
LEAK = 0.2
"""Slope of the discriminator's LeakyReLU. Source: the paper, section 3."""


class Generator(nn.Module):
    """Noise [N, noise_size] -> images [N, channels, H, W], normalised as those of the data set are.

    tanh gives pixels in [-1, 1], which stand for [0, 1]; the buffers `mean` and `std`, of each channel of the data set,
    then normalise them as the loader does, so what reads real images reads these. At first they are 0.5: tanh itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, noise_size: int, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.noise_size = noise_size
        """Standard normal numbers that an image is made of."""
        layers: list[nn.Module] = []
        inputs = noise_size
        for number, width in enumerate(widths):
            stride, padding = (2, 1) if number else (1, 0)
            convolution = nn.ConvTranspose2d(inputs, width, kernel_size=4, stride=stride, padding=padding, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        layers += [nn.ConvTranspose2d(inputs, channels, kernel_size=4, stride=2, padding=1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((channels, 1, 1), 0.5))

    def forward(self, noise: Tensor) -> Tensor:
        """Noise to normalised images."""
        return ((self.layers(noise[:, :, None, None]) + 1) / 2 - self.mean) / self.std


class Discriminator(nn.Module):
    """Images to logits of their being real. BatchNorm is in all but the first and the last layer."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for number, width in enumerate(widths):
            layers.append(nn.Conv2d(inputs, width, kernel_size=4, stride=2, padding=1, bias=False))
            if number:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.LeakyReLU(LEAK, inplace=True))
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, 1, kernel_size=4, bias=False), nn.Flatten(0))

    def forward(self, *batches: Tensor) -> Tensor:
        """Batches of images, each [N, C, H, W] and each by itself for BatchNorm -> logits, all in one row [sum of N].

        Real and made images thus go through one forward pass of a wrapper, which may count on one for each backward.
        """
        return torch.cat([self.layers(images) for images in batches])


class Dcgan(nn.Module):
    """Both networks; called as one, the discriminator."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, 0.0, STD)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, STD)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N] of their being real."""
        return self.discriminator(images)


def _widths(shape: Shape, sizes: tuple[int, ...], width: int, name: str) -> tuple[int, ...]:
    """Channels of the discriminator's layers, each twice those before, down to 4x4 pixels.

    Raises ModelMistake unless the images have one of the sizes.
    """
    sides = shape[1:]
    if len(shape) != 3 or sides[0] != sides[1] or sides[0] not in sizes:
        known = " or ".join(f"{size}x{size}" for size in sizes)
        got = "x".join(map(str, sides)) if len(shape) == 3 else f"samples of {'x'.join(map(str, shape))}"
        raise ModelMistake(f"expected images of {known} for {name}, got {got}; add --image-size {sizes[-1]}")
    return tuple(width * 2**layer for layer in range(sides[0].bit_length() - 3))


@model(shape=(3, 64, 64), classes=10, parameters=6_342_272, source=SOURCE, task="adversarial")
def dcgan(shape: Shape, classes: int) -> nn.Module:
    """The paper's size on 64x64 RGB images: generator 3,576,704, discriminator 2,765,568 parameters."""
    widths = _widths(shape, (64,), 64, "dcgan")
    return Dcgan(Generator(100, widths[::-1], shape[0]), Discriminator(shape[0], widths))


@model(shape=(1, 32, 32), classes=10, parameters=116_640, source=f"{SOURCE}; a quarter as wide", task="adversarial")
def dcgan_digits(shape: Shape, classes: int) -> nn.Module:
    """A small one for a CPU, on images of 16x16 or 32x32."""
    widths = _widths(shape, (16, 32), 16, "dcgan-digits")
    return Dcgan(Generator(32, widths[::-1], shape[0]), Discriminator(shape[0], widths))
