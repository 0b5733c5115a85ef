"""Mask R-CNN and other detectors of torchvision, without weights, for images that the data has normalised already.

Source: He et al., "Mask R-CNN", 2017, and the papers named below, as torchvision builds them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection

from models.spec import ModelMistake, Shape, model

NATIVE: Shape = (3, 800, 800)
"""The papers scale the shorter side to 800 pixels; here the whole image fits into the square."""


class TorchvisionDetector(nn.Module):
    """A detector of torchvision whose classes count from 0: its own class 0 is the background.

    In training (images [N, 3, H, W], targets) -> a dict of losses, each a mean over the samples; targets is a list of
    N dicts with boxes float [k, 4], labels int64 [k] and, for masks, masks uint8 [k, H, W]. In evaluation images -> a
    list of N dicts with boxes, scores, labels and, with masks, masks float [k, 1, H, W]. Every parameter gets a
    gradient from every batch, also from one without any box.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.uses_masks = getattr(getattr(net, "roi_heads", None), "mask_head", None) is not None
        for name in ("backbone", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor", "head"):
            part: Any = net
            for step in name.split("."):
                part = getattr(part, step, None)
            if part is not None:
                part.register_forward_hook(_in_full_precision)
        if self.uses_masks:
            net.get_submodule("roi_heads.mask_roi_pool").register_forward_pre_hook(_never_empty)

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses in training, detections in evaluation."""
        if not self.training:
            return [each | {"labels": each["labels"] - 1} for each in self.net(images)]
        assert targets is not None
        return self.net(images, [each | {"labels": each["labels"] + 1} for each in targets])


def _in_full_precision(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Under autocast torchvision would compute anchors and boxes with the 8 bits of bfloat16: too coarse for pixels."""
    if isinstance(output, Tensor):
        return output.to(torch.promote_types(output.dtype, torch.float32))
    if isinstance(output, dict):
        return type(output)((name, _in_full_precision(module, inputs, each)) for name, each in output.items())
    return type(output)(_in_full_precision(module, inputs, each) for each in output)


def _never_empty(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """In training, let the head of the masks see one region even if no image of the batch has an object.

    torchvision then takes no loss from it but a gradient of zero. Without any region on any rank BatchNorm in that head
    would divide by no samples, and its statistics would be lost for ever.
    """
    features, boxes, sizes = inputs
    if not module.training or any(map(len, boxes)):
        return None
    height, width = sizes[0]
    return features, [boxes[0].new_tensor([[0.0, 0.0, width, height]]), *boxes[1:]], sizes


def wrapped(build: Callable[..., nn.Module], shape: Shape, classes: int, **options: Any) -> TorchvisionDetector:
    """One of torchvision's functions with the background as one class more, at the images' own size and values.

    BatchNorm trains, as there are no weights that it could be frozen with: 53,120 parameters more than torchvision's
    figures for its frozen ResNet-50. `options` go to torchvision.
    """
    if len(shape) != 3 or shape[0] != 3:
        raise ModelMistake(
            f"expected images of 3 channels for torchvision's detectors, got samples of {'x'.join(map(str, shape))}; "
            "choose another model"
        )
    net = build(
        weights=None,
        weights_backbone=None,
        num_classes=classes + 1,
        min_size=min(shape[1:]),
        max_size=max(shape[1:]),
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
        **options,
    )
    return TorchvisionDetector(net)


@model(shape=NATIVE, classes=90, parameters=44_454_513, source="torchvision; He et al. 2017", task="detection")
def maskrcnn_resnet50_fpn(shape: Shape, classes: int) -> nn.Module:
    """ResNet-50 with a feature pyramid; boxes and masks."""
    return wrapped(detection.maskrcnn_resnet50_fpn, shape, classes)


@model(shape=NATIVE, classes=90, parameters=46_359_409, source="torchvision; Li et al. 2021", task="detection")
def maskrcnn_resnet50_fpn_v2(shape: Shape, classes: int) -> nn.Module:
    """The same with deeper heads that hold BatchNorm."""
    return wrapped(detection.maskrcnn_resnet50_fpn_v2, shape, classes)


@model(shape=NATIVE, classes=90, parameters=41_808_406, source="torchvision; Ren et al. 2015", task="detection")
def fasterrcnn_resnet50_fpn(shape: Shape, classes: int) -> nn.Module:
    """ResNet-50 with a feature pyramid; boxes alone."""
    return wrapped(detection.fasterrcnn_resnet50_fpn, shape, classes)


@model(shape=NATIVE, classes=90, parameters=34_068_119, source="torchvision; Lin et al. 2017", task="detection")
def retinanet_resnet50_fpn(shape: Shape, classes: int) -> nn.Module:
    """RetinaNet: one pass, anchors and the focal loss."""
    return wrapped(detection.retinanet_resnet50_fpn, shape, classes)


@model(shape=NATIVE, classes=90, parameters=32_322_720, source="torchvision; Tian et al. 2019", task="detection")
def fcos_resnet50_fpn(shape: Shape, classes: int) -> nn.Module:
    """FCOS: one pass, without anchors."""
    return wrapped(detection.fcos_resnet50_fpn, shape, classes)
