"""YOLO v3: one pass over the image gives boxes of several sizes at every place of two or three grids.

Source: Redmon, Farhadi, "YOLOv3: an incremental improvement", 2018.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence

from models.boxes import best_boxes
from models.spec import ModelMistake, Shape, model
from models.yolo_loss import Places, decode, yolo_losses

SOURCE = "Redmon, Farhadi 2018, yolov3.cfg: Darknet-53 and three scales; counted by hand"
SMALL_SOURCE = "written for ringmark: YOLO v3 with a fifth of the layers and two scales"
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
"""Widths and heights in pixels of a 416 x 416 image, from the finest grid to the coarsest. Source: section 2.3."""
SMALL_ANCHORS = (((8, 8), (12, 12), (16, 16)), ((20, 20), (24, 24), (32, 32)))
"""The same of a 64 x 64 image."""
PER_SCALE = 3
"""Anchors of one grid."""
PRIOR = 0.01
"""How sure an untrained model is that a box is at a place; near 1/2, empty places would be most of the first losses.

Source: Lin et al., "Focal loss for dense object detection", 2017, section 3.3."""


def _conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1, inplace=True))


class Residual(nn.Module):
    """A bottleneck of half the channels, around which the input is carried unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width // 2, 1), _conv(width // 2, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] -> the same shape."""
        return x + self.body(x)


class Darknet(nn.Module):
    """A stem, and stages that each halve the image, double the channels and add residual blocks.

    Five stages of 1, 2, 8, 8 and 4 blocks behind 32 channels are Darknet-53 without its classifier.
    """

    def __init__(self, channels: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = _conv(channels, width, 3)
        self.stages = nn.ModuleList(
            nn.Sequential(
                _conv(width * 2**number, width * 2 ** (number + 1), 3, stride=2),
                *(Residual(width * 2 ** (number + 1)) for _ in range(count)),
            )
            for number, count in enumerate(blocks)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images -> the features of every stage."""
        x, features = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Scale(nn.Module):
    """The head of one grid: five convolutions, then what is predicted there; and what the next finer grid is given."""

    def __init__(self, inputs: int, width: int, outputs: int, *, last: bool) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(
            _conv(inputs, half, 1),
            _conv(half, width, 3),
            _conv(width, half, 1),
            _conv(half, width, 3),
            _conv(width, half, 1),
        )
        self.predict = nn.Sequential(_conv(half, width, 3), nn.Conv2d(width, outputs, 1))
        self.up = None if last else _conv(half, half // 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[N, inputs, h, w] -> predictions [N, outputs, h, w], and [N, width / 4, 2 h, 2 w] unless this is the last."""
        x = self.body(x)
        finer = None if self.up is None else interpolate(self.up(x), scale_factor=2.0, mode="nearest")
        return self.predict(x), finer


class Yolo(nn.Module):
    """Darknet and a head on each of its last stages, from the coarsest grid to the finest.

    In training (images [N, C, H, W], targets) -> losses float [N], one for each sample; targets is a list of N dicts
    with boxes float [k, 4] and labels int64 [k], where a negative label is no box. In evaluation images -> a list of N
    dicts with boxes, scores and labels.
    """

    padded_targets = True
    """Rows without a box may stay in the targets: to take them out, a GPU would have to be waited for."""

    def __init__(
        self,
        shape: Shape,
        classes: int,
        *,
        width: int,
        blocks: Sequence[int],
        anchors: Sequence[Sequence[tuple[float, float]]],
    ) -> None:
        """`anchors` are shares of the image's width and height, finest grid first."""
        super().__init__()
        stages, scales, (channels, height, tall) = len(blocks), len(anchors), shape
        if height % 2**stages or tall % 2**stages:
            raise ModelMistake(
                f"expected images whose sides are multiples of {2**stages} pixels, got {height}x{tall}; "
                f"use --image-size {max(1, round(height / 2**stages)) * 2**stages}"
            )
        self.places = Places([2 ** (stages - scales + 1 + scale) for scale in range(scales)], anchors, (height, tall))
        self.backbone = Darknet(channels, width, blocks)
        widths = [width * 2 ** (stages - scale) for scale in range(scales)]  # coarsest first, as the heads are
        self.heads = nn.ModuleList(
            Scale(
                width_here if scale == 0 else width_here + width_here // 2,
                width_here,
                PER_SCALE * (5 + classes),
                last=scale == scales - 1,
            )
            for scale, width_here in enumerate(widths)
        )
        for head in self.heads:
            self._begin(head)

    @staticmethod
    def _begin(head: nn.Module) -> None:
        """Set the biases of objectness, of which there is one for each anchor, to `PRIOR`."""
        assert isinstance(head, Scale)
        bias = head.predict[1].bias
        assert isinstance(bias, Tensor)
        with torch.no_grad():
            bias.view(PER_SCALE, -1)[:, 4].fill_(-math.log((1 - PRIOR) / PRIOR))

    def logits(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] -> predictions [N, S, 5 + classes] of all places of all grids, finest grid first."""
        features = self.backbone(images)[::-1]
        finer, found = None, []
        for head, feature in zip(self.heads, features, strict=False):
            grid, finer = head(feature if finer is None else torch.cat([finer, feature], dim=1))
            flat = grid.view(len(grid), PER_SCALE, -1, grid.shape[2] * grid.shape[3])
            found.append(flat.transpose(2, 3).flatten(1, 2))
        # Half precision is too coarse for a place in the image.
        return torch.cat(found[::-1], dim=1).to(torch.promote_types(images.dtype, torch.float32))

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses in training, detections in evaluation."""
        logits = self.logits(images)
        if self.training:
            assert targets is not None
            boxes = pad_sequence([each["boxes"] for each in targets], batch_first=True).to(logits.dtype)
            labels = pad_sequence([each["labels"] for each in targets], batch_first=True, padding_value=-1)
            return yolo_losses(logits, self.places, boxes, labels)
        height, width = images.shape[2:]
        boxes = decode(logits, self.places)
        edges = boxes.new_tensor([width, height, width, height])
        boxes = torch.minimum(boxes.clamp(min=0), edges)
        scores = logits[..., 4:5].sigmoid() * logits[..., 5:].sigmoid()
        return [best_boxes(*each) for each in zip(boxes, scores, strict=True)]


def _shares(anchors: Sequence[Sequence[tuple[int, int]]], side: int) -> list[list[tuple[float, float]]]:
    return [[(width / side, height / side) for width, height in scale] for scale in anchors]


@model(shape=(3, 416, 416), classes=80, parameters=61_949_149, source=SOURCE, task="detection")
def yolov3(shape: Shape, classes: int) -> nn.Module:
    """Darknet-53 with grids of 8, 16 and 32 pixels."""
    return Yolo(shape, classes, width=32, blocks=(1, 2, 8, 8, 4), anchors=_shares(ANCHORS, 416))


@model(shape=(3, 64, 64), classes=4, parameters=525_454, source=SMALL_SOURCE, task="detection")
def yolo_small(shape: Shape, classes: int) -> nn.Module:
    """Four stages of one block behind 8 channels, with grids of 8 and 16 pixels."""
    return Yolo(shape, classes, width=8, blocks=(1, 1, 1, 1), anchors=_shares(SMALL_ANCHORS, 64))
