"""EfficientNet-B0 for small images: a stem of stride 1, and no 1x1 convolution before the classifier."""

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from models.layers import conv_bn
from models.spec import Shape, model

SOURCE = "Tan and Le, 'EfficientNet', 2019; CIFAR form of the kuangliu pytorch-cifar zoo, without its unused weights"
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Expansion, output channels, blocks, stride of the first of them and kernel size, for each stage."""
DROPOUT, STOCHASTIC_DEPTH = 0.2, 0.2
"""Share of features dropped before the classifier; of samples that skip the last block, fewer in those before it."""


class Block(nn.Module):
    """Expand, filter each channel, weigh the channels, project back; the input is added if it has the same shape.

    `stage`: expansion, output channels, stride, kernel size. [N, inputs, H, W] -> [N, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, stage: tuple[int, int, int, int], skip_probability: float) -> None:
        super().__init__()
        expansion, outputs, stride, kernel_size = stage
        width = expansion * inputs
        expand = [*conv_bn(inputs, width, 1), nn.SiLU(inplace=True)] if expansion != 1 else []
        self.body = nn.Sequential(
            *expand,
            *conv_bn(width, width, kernel_size, stride=stride, groups=width),
            nn.SiLU(inplace=True),
            SqueezeExcitation(width, inputs // 4, activation=nn.SiLU),
            *conv_bn(width, outputs, 1),
        )
        adds = stride == 1 and inputs == outputs
        self.skip = StochasticDepth(skip_probability, mode="row") if adds else None

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return self.body(x) if self.skip is None else x + self.skip(self.body(x))


@model(shape=(3, 32, 32), classes=10, parameters=3_598_598, source=SOURCE)
def efficientnet_b0_cifar(shape: Shape, classes: int) -> nn.Module:
    """EfficientNet-B0.

    The zoo's own count is 3,599,686: it holds a 1x1 convolution and its BatchNorm in the first block, 1,088 weights,
    that it does not use.
    """
    layers, inputs, done = [*conv_bn(shape[0], 32, 3), nn.SiLU(inplace=True)], 32, 0
    total = sum(blocks for _, _, blocks, _, _ in STAGES)
    for expansion, outputs, blocks, stride, kernel_size in STAGES:
        for number in range(blocks):
            stage = (expansion, outputs, stride if number == 0 else 1, kernel_size)
            layers.append(Block(inputs, stage, STOCHASTIC_DEPTH * done / total))
            inputs, done = outputs, done + 1
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers, *head)
