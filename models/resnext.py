"""ResNeXt for small images: residual blocks whose 3x3 convolution is split into groups."""

from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import conv_bn, fill_convolutions, mean_and_linear
from models.spec import Shape, model

SOURCE = "Xie et al., 'Aggregated residual transformations', 2017; 29-layer form of the kuangliu pytorch-cifar zoo"
STEM_WIDTH, STAGES, BLOCKS, EXPANSION = 64, 3, 3, 2


class ResNeXtBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions to twice `width` channels; a 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, width: int, groups: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.body = nn.Sequential(
            *conv_bn(inputs, width, 1),
            nn.ReLU(inplace=True),
            *conv_bn(width, width, 3, stride=stride, groups=groups),
            nn.ReLU(inplace=True),
            *conv_bn(width, outputs, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, 2 * width, H / stride, W / stride], rounded up."""
        return F.relu(self.body(x) + self.shortcut(x))


def _resnext29(groups: int, group_width: int, shape: Shape, classes: int) -> nn.Module:
    """`group_width` channels in each group of the first stage; each stage doubles them and, but the first, halves the
    image.
    """
    blocks, inputs = [], STEM_WIDTH
    for stage in range(STAGES):
        width = groups * group_width * 2**stage
        for block in range(BLOCKS):
            blocks.append(ResNeXtBlock(inputs, width, groups, stride=2 if stage > 0 and block == 0 else 1))
            inputs = EXPANSION * width
    stem = (*conv_bn(shape[0], STEM_WIDTH, 1), nn.ReLU(inplace=True))
    return fill_convolutions(nn.Sequential(*stem, *blocks, *mean_and_linear(inputs, classes)))


@model(shape=(3, 32, 32), classes=10, parameters=9_128_778, source=SOURCE)
def resnext29_2x64d(shape: Shape, classes: int) -> nn.Module:
    """Two groups of 64 channels."""
    return _resnext29(2, 64, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=27_104_586, source=SOURCE)
def resnext29_4x64d(shape: Shape, classes: int) -> nn.Module:
    """Four groups of 64 channels."""
    return _resnext29(4, 64, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=89_598_282, source=SOURCE)
def resnext29_8x64d(shape: Shape, classes: int) -> nn.Module:
    """Eight groups of 64 channels."""
    return _resnext29(8, 64, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=4_774_218, source=SOURCE)
def resnext29_32x4d(shape: Shape, classes: int) -> nn.Module:
    """32 groups of four channels."""
    return _resnext29(32, 4, shape, classes)
