"""What networks that give every pixel a class have in common: backbones, and logits at the size of the image."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import resnet
from torchvision.models.vgg import make_layers

from models.layers import fill_convolutions
from models.spec import ModelMistake, Shape

VGG16: tuple[str | int, ...] = (
    *(64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
    *(512, 512, 512, "M", 512, 512, 512, "M"),
)
"""Widths of VGG16's convolutions; M is a pooling that halves height and width."""
Logits = Tensor | dict[str, Tensor]
"""[N, classes, H, W]; in training, of a model with an auxiliary head, a dict of two such: out and aux."""


def require_rgb(shape: Shape, name: str) -> None:
    """Raise ModelMistake unless samples are images of 3 channels, which is what a backbone of torchvision takes."""
    if len(shape) != 3 or shape[0] != 3:
        got = "x".join(map(str, shape))
        raise ModelMistake(f"expected images of 3 channels for {name}, got samples of {got}; choose another model")


def enlarged(logits: Tensor, image: Tensor) -> Tensor:
    """Logits [N, classes, h, w] at the height and width of the image, bilinearly."""
    return interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def vgg_stages(widths: Sequence[str | int], *, batch_norm: bool = False) -> list[nn.Sequential]:
    """VGG's layers, each stage with the pooling that ends it. `widths` ends with M."""
    layers = make_layers(list(widths), batch_norm=batch_norm)
    fill_convolutions(layers)
    ends = [number + 1 for number, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    return [layers[start:end] for start, end in pairwise([0, *ends])]


class DilatedResNet(nn.Module):
    """A ResNet of bottleneck blocks without its head, whose last two stages widen their view instead of shrinking.

    [N, 3, H, W] -> features of the last stage [N, 2048, H/8, W/8] and of the one before it [N, 1024, H/8, W/8].
    """

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        whole = resnet.ResNet(resnet.Bottleneck, list(blocks), replace_stride_with_dilation=[False, True, True])
        self.stem = nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool)
        self.body = nn.Sequential(whole.layer1, whole.layer2, whole.layer3)
        self.last = whole.layer4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images to the features of the last two stages."""
        earlier = self.body(self.stem(x))
        return self.last(earlier), earlier


RESNET50, RESNET101 = (3, 4, 6, 3), (3, 4, 23, 3)
"""Blocks of each stage."""


class FromTorchvision(nn.Module):
    """One of torchvision's segmentation models; it gives a dict also in evaluation mode, this one a tensor."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.backbone = cast("nn.Module", whole.backbone)
        self.head = cast("nn.Module", whole.classifier)
        self.auxiliary = cast("nn.Module", whole.aux_classifier)

    def forward(self, x: Tensor) -> Logits:
        """Images [N, 3, H, W] to logits."""
        features = self.backbone(x)
        out = enlarged(self.head(features["out"]), x)
        if not self.training:
            return out
        return {"out": out, "aux": enlarged(self.auxiliary(features["aux"]), x)}
