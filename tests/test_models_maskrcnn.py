"""torchvision's detectors as ours: classes from 0, the images' own size, boxes in full precision, all gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from models import zoo
from models.maskrcnn import TorchvisionDetector
from models.spec import ModelMistake
from tests.detector_runs import SIDE, tiny_maskrcnn


class Echo(nn.Module):
    """Gives in training the classes it is told, and in evaluation class 1, the first behind the background."""

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        if targets is not None:
            return {"labels": targets[0]["labels"]}
        return [{"boxes": torch.zeros(1, 4), "labels": torch.tensor([1]), "scores": torch.ones(1)}]


def test_classes_count_from_0_and_the_background_is_torchvisions_own_affair() -> None:
    model, targets = TorchvisionDetector(Echo()), [{"boxes": torch.zeros(2, 4), "labels": torch.tensor([0, 3])}]
    assert model(torch.zeros(1, 3, 8, 8), targets)["labels"].tolist() == [1, 4]
    assert targets[0]["labels"].tolist() == [0, 3]
    assert model.eval()(torch.zeros(1, 3, 8, 8))[0]["labels"].tolist() == [0]


def tiny_one_stage(name: str) -> nn.Module:
    backbone: Any = nn.Sequential(nn.Conv2d(3, 32, 3, stride=8, padding=1), nn.ReLU())
    backbone.out_channels = 32
    options: Any = {"num_classes": 3, "min_size": SIDE, "max_size": SIDE}
    if name == "fcos":
        return TorchvisionDetector(FCOS(backbone, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), **options))
    return TorchvisionDetector(RetinaNet(backbone, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), **options))


@pytest.mark.parametrize("name", ["maskrcnn", "retinanet", "fcos"])
def test_images_without_boxes_give_every_parameter_a_finite_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = tiny_maskrcnn() if name == "maskrcnn" else tiny_one_stage(name)
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, SIDE, SIDE, dtype=torch.uint8),
    }
    losses = model(torch.randn(2, 3, SIDE, SIDE), [nothing, nothing])
    sum(losses.values()).backward()
    for part, parameter in model.named_parameters():
        assert parameter.grad is not None, part
        assert torch.isfinite(parameter.grad).all(), part


def test_boxes_are_in_full_precision_under_autocast() -> None:
    """In bfloat16, neighbours of 200 are 199 and 201."""
    model = tiny_maskrcnn().eval()
    seen = []
    model.get_submodule("net.rpn.head").register_forward_hook(lambda _, __, out: seen.extend(out[0] + out[1]))
    model.get_submodule("net.backbone").register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(torch.randn(1, 3, SIDE, SIDE))[0]
    assert {each.dtype for each in [*seen, found["boxes"], found["scores"]]} == {torch.float32}
    assert len(found["boxes"])


@pytest.mark.parametrize("name", ["maskrcnn-resnet50-fpn", "maskrcnn-resnet50-fpn-v2", "retinanet-resnet50-fpn"])
def test_a_model_is_built_for_the_images_as_they_come_with_batchnorm_that_trains(name: str) -> None:
    with torch.device("meta"):
        model = zoo.find(name).build((3, 96, 128), 4)
    assert isinstance(model, TorchvisionDetector)
    transform: Any = model.net.transform
    assert (transform.min_size, transform.max_size) == ((96,), 128)
    assert transform.image_mean == [0, 0, 0]
    assert transform.image_std == [1, 1, 1]
    assert model.uses_masks == name.startswith("maskrcnn")
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.net.get_submodule("backbone.body").modules()) == 53
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_grey_images_are_refused() -> None:
    with pytest.raises(
        ModelMistake, match="expected images of 3 channels for torchvision's detectors, got samples of 1x"
    ):
        zoo.find("fcos-resnet50-fpn").build((1, 64, 64), 4)
