"""YOLO: where boxes are assigned, what the numbers of a place mean, and the loss of each sample."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, complete_box_iou

from models import zoo
from models.boxes import best_boxes, complete_iou, overlap
from models.spec import ModelMistake
from models.yolo import ANCHORS, SMALL_ANCHORS, Yolo, yolo_small
from models.yolo_loss import Places, decode, encode, yolo_losses

BOXES = torch.tensor([[3.0, 5, 12, 13], [20, 30, 44, 58], [40, 2, 62, 20], [1, 33, 10, 63]], dtype=torch.float64)
CLASSES = 4
PLACES = 3 * (8 * 8 + 4 * 4)


def places_64() -> Places:
    shares = [[(width / 64, height / 64) for width, height in scale] for scale in SMALL_ANCHORS]
    return Places([8, 16], shares, (64, 64)).double()


def random_boxes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64).sort(dim=1).values * 63
    return torch.cat([corners[:, 0], corners[:, 1] + 1], dim=1)


def certain(boxes: Tensor, labels: Tensor) -> Tensor:
    """Predictions [1, S, 5 + classes] that say exactly those boxes, and that there are no others."""
    places = places_64()
    logits = torch.full((1, PLACES, 5 + CLASSES), -30.0, dtype=torch.float64)
    logits[..., :4] = 0
    place = places.assigned(boxes)
    logits[0, place, :4] = encode(boxes, place, places)
    logits[0, place, 4] = 30
    logits[0, place, 5 + labels] = 30
    return logits


def small(**options: int) -> nn.Module:
    torch.manual_seed(0)
    return yolo_small.build((3, options.get("height", 64), options.get("width", 64)), CLASSES)


def test_what_a_place_must_say_for_a_box_says_that_box() -> None:
    places, boxes = places_64(), random_boxes(200)
    place = places.assigned(boxes)
    logits = torch.zeros(200, PLACES, 4, dtype=torch.float64)
    logits[torch.arange(200), place] = encode(boxes, place, places)
    found = decode(logits, places)[torch.arange(200), place]
    assert torch.allclose(found, boxes, atol=1e-4)


@pytest.mark.parametrize(
    ("box", "stride", "anchor"),
    [([3, 5, 12, 13], 8, 0), ([16, 40, 28, 53], 8, 1), ([20, 30, 44, 55], 16, 1), ([0, 0, 64, 64], 16, 2)],
)
def test_a_box_goes_to_the_best_anchor_in_the_cell_of_its_centre(box: list[int], stride: int, anchor: int) -> None:
    """Place = grid's start + anchor x cells + row x columns + column, finest grid first."""
    cells = 64 // stride
    column, row = ((box[side] + box[side + 2]) // 2 // stride for side in (0, 1))
    start = 0 if stride == 8 else 3 * 8 * 8
    expected = start + anchor * cells * cells + row * cells + column
    place = places_64().assigned(torch.tensor(box, dtype=torch.float64))
    assert int(place) == expected
    assert places_64().stride[place].item() == stride


def test_grids_may_be_higher_than_wide() -> None:
    """A centre in the last row and column is found in a picture of 32 x 96 pixels."""
    shares = [[(0.1, 0.1)], [(0.4, 0.4)]]
    places = Places([8, 16], shares, (96, 32))
    assert places.start.shape == (12 * 4 + 6 * 2, 2)
    assert int(places.assigned(torch.tensor([28.0, 88, 31, 95]))) == 11 * 4 + 3
    assert places.start[11 * 4 + 3].tolist() == [24, 88]


def test_the_loss_of_perfect_predictions_is_near_zero_and_rises_with_every_mistake() -> None:
    labels, places = torch.arange(4), places_64()
    perfect = certain(BOXES, labels)
    place = places.assigned(BOXES)

    def loss(logits: Tensor) -> float:
        return float(yolo_losses(logits, places, BOXES[None], labels[None]))

    assert loss(perfect) < 1e-3
    empty = next(number for number in range(PLACES) if number not in place)
    for where, column, value in ((place[0], 0, 30.0), (place[1], 4, -30.0), (place[2], 5, 30.0), (empty, 4, 30.0)):
        wrong = perfect.clone()
        wrong[0, where, column] = value
        assert loss(wrong) > loss(perfect) + 0.05, (where, column)


def test_a_prediction_that_overlaps_a_box_well_is_not_told_to_be_empty() -> None:
    labels, places = torch.arange(4), places_64()
    logits = certain(BOXES, labels)
    other = int(places.assigned(BOXES[1])) + 16  # the next anchor in the same cell
    logits[0, other, :4] = encode(BOXES[1], torch.tensor(other), places)
    logits[0, other, 4] = 30
    assert float(yolo_losses(logits, places, BOXES[None], labels[None])) < 1e-3


def test_the_loss_of_a_sample_does_not_depend_on_the_others_or_on_padding() -> None:
    torch.manual_seed(0)
    places, logits = places_64(), torch.randn(3, PLACES, 5 + CLASSES, dtype=torch.float64)
    boxes = torch.stack([BOXES, BOXES.flip(0), BOXES])
    labels = torch.tensor([[0, 1, 2, 3], [3, -1, -1, -1], [-1, -1, -1, -1]])
    together = yolo_losses(logits, places, boxes, labels)
    alone = [
        yolo_losses(logits[i : i + 1], places, boxes[i : i + 1, : max(1, 4 - 3 * i)], labels[i : i + 1, : 4 - 3 * i])
        for i in (0, 1)
    ]
    alone.append(yolo_losses(logits[2:], places, boxes[2:, :0], labels[2:, :0]))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("counts", [[0, 0], [0, 2]])
def test_samples_without_boxes_give_a_finite_loss_and_every_parameter_a_gradient(counts: list[int]) -> None:
    model = small().train()
    targets = [{"boxes": BOXES[:count].float(), "labels": torch.arange(count)} for count in counts]
    losses = model(torch.randn(2, 3, 64, 64), targets)
    assert losses.shape == (2,)
    losses.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_boxes_of_no_size_give_finite_gradients() -> None:
    logits = torch.zeros(1, PLACES, 5 + CLASSES, dtype=torch.float64, requires_grad=True)
    point = torch.tensor([[[64.0, 64, 64, 64]]], dtype=torch.float64)
    yolo_losses(logits, places_64(), point, torch.tensor([[0]])).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_perfect_predictions_are_shown_as_those_boxes_and_classes() -> None:
    labels = torch.tensor([2, 0, 3, 1])
    logits = certain(BOXES, labels)[0]
    shown = best_boxes(decode(logits[None], places_64())[0], logits[:, 4:5].sigmoid() * logits[:, 5:].sigmoid())
    order = shown["labels"].argsort()
    torch.testing.assert_close(shown["boxes"][order], BOXES[labels.argsort()], rtol=0, atol=1e-4)
    assert shown["labels"][order].tolist() == [0, 1, 2, 3]
    assert shown["scores"].min() > 0.99


def test_of_boxes_of_one_class_that_overlap_only_the_surest_is_shown() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]])
    shown = best_boxes(boxes, torch.tensor([[0.9, 0.0], [0.8, 0.7], [0.005, 0.5]]))
    assert shown["labels"].tolist() == [0, 1, 1]
    assert shown["scores"].tolist() == pytest.approx([0.9, 0.7, 0.5])


def test_overlaps_are_those_of_torchvision() -> None:
    one, other = random_boxes(40)[:20], random_boxes(40)[20:]
    intersection, union = overlap(one[:, None], other[None])
    torch.testing.assert_close(intersection / union, box_iou(one, other))
    torch.testing.assert_close(complete_iou(one[:, None], other[None]), complete_box_iou(one, other), rtol=0, atol=1e-5)


def test_detections_lie_within_the_image_at_any_shape() -> None:
    model = small(height=32, width=96).eval()
    for head in model.get_submodule("heads").children():
        nn.init.constant_(head.get_submodule("predict.1").bias, 1.0)  # sure of boxes everywhere
    with torch.no_grad():
        found = model(torch.randn(2, 3, 32, 96) * 10)
    assert len(found) == 2
    for each in found:
        assert 0 < len(each["boxes"]) <= 100
        assert each["boxes"].min() >= 0
        assert (each["boxes"].max(0).values <= torch.tensor([96, 32, 96, 32])).all()
        assert (each["scores"].diff() <= 0).all()


def test_sides_that_the_grids_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelMistake, match="multiples of 16 pixels, got 60x64; use --image-size 64"):
        small(height=60)


def test_yolov3_has_darknet_53_and_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        model = zoo.find("yolov3").build((3, 416, 416), 80)
    assert isinstance(model, Yolo)
    convolutions = [each for each in model.backbone.modules() if isinstance(each, nn.Conv2d)]
    assert len(convolutions) == 52  # the 53rd layer is the classifier's
    assert sum(parameter.numel() for parameter in model.parameters()) == 61_949_149
    assert model.places.start.shape == (3 * (52**2 + 26**2 + 13**2), 2)
    assert len(ANCHORS) == 3
