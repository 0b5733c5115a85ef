"""SegNet: an encoder that remembers where its maxima were, and a decoder that puts values back there.

Source: Badrinarayanan, Kendall, Cipolla, "SegNet: a deep convolutional encoder-decoder architecture for image
segmentation", 2015.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.segmenter import VGG16, require_rgb, vgg_stages
from models.spec import Shape, model

SOURCE = "Badrinarayanan et al., 'SegNet', 2015; encoder as torchvision's vgg16_bn"


class SegNet(nn.Module):
    """[N, 3, H, W] -> logits [N, classes, H, W], for H and W of at least 2 for each pooling: 32 with VGG16's five.

    `widths` are those of the encoder, as of VGG; the decoder mirrors it, without a pooling of its own to learn.
    """

    def __init__(self, widths: Sequence[str | int], classes: int) -> None:
        super().__init__()
        stages = [stage[:-1] for stage in vgg_stages(widths, batch_norm=True)]
        self.encoder = nn.ModuleList(stages)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.decoder = nn.ModuleList()
        for stage in reversed(stages):
            layers: list[nn.Module] = []
            convolutions = [layer for layer in stage if isinstance(layer, nn.Conv2d)]
            for layer in reversed(convolutions):
                first = stage is stages[0] and layer is convolutions[0]
                outputs = classes if first else layer.in_channels
                layers.append(nn.Conv2d(layer.out_channels, outputs, kernel_size=3, padding=1))
                if not first:  # the last layer of all gives the logits
                    layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            self.decoder.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        pooled = []
        for stage in self.encoder:
            x = stage(x)
            size = x.shape[2:]
            x, indices = self.pool(x)
            pooled.append((indices, size))
        for stage in self.decoder:
            indices, size = pooled.pop()
            x = stage(self.unpool(x, indices, output_size=size))
        return x


@model(shape=(3, 256, 256), classes=12, parameters=29_449_932, source=SOURCE, task="segmentation")
def segnet(shape: Shape, classes: int) -> nn.Module:
    """With VGG16 as its encoder."""
    require_rgb(shape, "segnet")
    return SegNet(VGG16, classes)
