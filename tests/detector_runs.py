"""Small detectors and their batches, and steps of any of them on real ranks."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch
from ddp.optim_config import OptimConfig
from ddp.tasks.detection import TASK
from ddp.trainer import Trainer, make_trainer
from models.maskrcnn import TorchvisionDetector
from models.yolo import Yolo

OPTIM = OptimConfig(optimizer="sgd", lr=0.01, momentum=0, weight_decay=0, schedule="constant", warmup=0)
SIDE, CLASSES = 32, 3


def tiny_yolo() -> nn.Module:
    """Two stages, in float64; BatchNorm does not look at the batch."""
    torch.manual_seed(0)
    anchors = [[(0.2, 0.2), (0.3, 0.2), (0.2, 0.3)], [(0.4, 0.4), (0.5, 0.5), (0.6, 0.6)]]
    model = Yolo((3, SIDE, SIDE), CLASSES, width=4, blocks=(1, 1), anchors=anchors).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.forward = _by_running(layer)  # type: ignore[method-assign]
    return model


def _by_running(layer: nn.BatchNorm2d) -> Any:
    """BatchNorm by its running statistics also in training: a sample's loss then depends on that sample alone."""

    def forward(x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False)

    return forward


def tiny_maskrcnn() -> TorchvisionDetector:
    """torchvision's Mask R-CNN with one convolution as its backbone, and BatchNorm there and in the masks' head."""
    torch.manual_seed(0)
    backbone: Any = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    backbone.out_channels = 8
    net = MaskRCNN(
        backbone,
        min_size=SIDE,
        max_size=SIDE,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
        box_batch_size_per_image=16,
        rpn_post_nms_top_n_train=20,
        rpn_post_nms_top_n_test=5,
        box_head=TwoMLPHead(8 * 7 * 7, 32),
        box_predictor=FastRCNNPredictor(32, CLASSES + 1),
        mask_head=MaskRCNNHeads(8, [8], 1, norm_layer=nn.BatchNorm2d),
        mask_predictor=MaskRCNNPredictor(8, 8, CLASSES + 1),
        box_score_thresh=0.0,
    )
    return TorchvisionDetector(net)


def trainer_of(module: nn.Module, ctx: DistContext, **options: Any) -> Trainer:
    """In training mode, with SGD."""
    trainer = make_trainer(module, TrainConfig(batch_size=4, optim=OPTIM, **options), ctx, 10, TASK)
    trainer.train_mode()
    return trainer


def batch_of(sizes: list[int], rank: int, counts: list[int], dtype: torch.dtype) -> Batch:
    """A rank's part of a batch cut into those sizes, whose samples have so many boxes."""
    generator = torch.Generator().manual_seed(3)
    inputs, targets, masks = TASK.random_batch((3, SIDE, SIDE), CLASSES, 40, generator)
    samples = len(counts)
    full = [row for row in range(40) if int((targets[row, :, 0] >= 0).sum()) == 4][:samples]
    targets = targets[full].clone()
    for row, count in enumerate(counts):
        targets[row, count:, 0] = -1
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    return Batch(
        inputs[full][mine].to(dtype), targets[mine], sum(sizes), torch.arange(samples)[mine], masks=masks[full][mine]
    )
