"""ResNets whose blocks normalise before each convolution, for small images."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import conv_bn, fill_convolutions, mean_and_linear
from models.spec import Shape, model

SOURCE = "He et al., 'Identity mappings in deep residual networks', 2016; form of the kuangliu pytorch-cifar zoo"
WIDTHS = (64, 128, 256, 512)

Body = Callable[[int, int, int], nn.Sequential]
"""(inputs, width, stride) -> the convolutions of a block, each but the first behind its own BatchNorm and ReLU."""


def bn_relu_conv(width: int, outputs: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    """BatchNorm, ReLU and a convolution without bias."""
    convolution, _ = conv_bn(width, outputs, kernel_size, stride=stride)
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True), convolution]


def two_convolutions(inputs: int, width: int, stride: int) -> nn.Sequential:
    """3x3 and 3x3, to `width` channels."""
    first, _ = conv_bn(inputs, width, 3, stride=stride)
    return nn.Sequential(first, *bn_relu_conv(width, width, 3))


def bottleneck(inputs: int, width: int, stride: int) -> nn.Sequential:
    """1x1, 3x3 and 1x1, to four times `width` channels."""
    first, _ = conv_bn(inputs, width, 1)
    return nn.Sequential(first, *bn_relu_conv(width, width, 3, stride), *bn_relu_conv(width, 4 * width, 1))


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, `body` and `gate`, around which the input is carried as it is.

    Where the shape changes, a 1x1 convolution of the normalised input is carried instead.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, body: nn.Module, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.body = body
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else conv_bn(inputs, outputs, 1, stride=stride)[0]
        self.gate = gate or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride], rounded up."""
        active = F.relu(self.norm(x))
        carried = x if self.shortcut is None else self.shortcut(active)
        return self.gate(self.body(active)) + carried


def preact_blocks(
    counts: Sequence[int], body: Body, expansion: int, gate: Callable[[int], nn.Module] | None = None
) -> list[nn.Module]:
    """Blocks of four stages from 64 to 512 * expansion channels; each stage but the first halves the image."""
    blocks: list[nn.Module] = []
    inputs = WIDTHS[0]
    for stage, (width, count) in enumerate(zip(WIDTHS, counts, strict=True)):
        outputs = width * expansion
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            convolutions = body(inputs, width, stride)
            blocks.append(PreActBlock(inputs, outputs, stride, convolutions, gate(outputs) if gate else None))
            inputs = outputs
    return blocks


def _preact_resnet(counts: Sequence[int], body: Body, expansion: int, shape: Shape, classes: int) -> nn.Module:
    """As in the zoo, nothing is normalised behind the last block, where the paper has one more BatchNorm and ReLU."""
    stem, _ = conv_bn(shape[0], WIDTHS[0], 3)
    blocks = preact_blocks(counts, body, expansion)
    return fill_convolutions(nn.Sequential(stem, *blocks, *mean_and_linear(WIDTHS[-1] * expansion, classes)))


@model(shape=(3, 32, 32), classes=10, parameters=11_171_146, source=SOURCE)
def preact_resnet18(shape: Shape, classes: int) -> nn.Module:
    """18 layers."""
    return _preact_resnet((2, 2, 2, 2), two_convolutions, 1, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=21_279_306, source=SOURCE)
def preact_resnet34(shape: Shape, classes: int) -> nn.Module:
    """34 layers."""
    return _preact_resnet((3, 4, 6, 3), two_convolutions, 1, shape, classes)


@model(shape=(3, 32, 32), classes=10, parameters=23_509_066, source=SOURCE)
def preact_resnet50(shape: Shape, classes: int) -> nn.Module:
    """50 layers, with bottleneck blocks."""
    return _preact_resnet((3, 4, 6, 3), bottleneck, 4, shape, classes)
