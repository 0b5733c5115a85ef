"""Boxes as tensors [..., 4] of x1, y1, x2, y2 in pixels: overlap, and the choice of what a detector shows."""

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms

SMALLEST_SCORE = 0.01
"""Boxes with a lower score are not shown; they cannot change an average precision much."""
NMS_IOU = 0.5
"""Of two boxes of one class that overlap more than this, the one with the lower score is not shown."""
MOST_CANDIDATES, MOST_BOXES = 400, 100
"""Boxes of an image before and after non-maximum suppression at most; 100 is what COCO's AP looks at."""
EPSILON = 1e-7


def centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Corners [..., 4] -> centres [..., 2] and widths and heights [..., 2]."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return (first + last) / 2, last - first


def overlap(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Areas [...] of the intersection and the union of boxes [..., 4], whose leading dimensions broadcast."""
    sides = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    intersection = sides.clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other)]
    return intersection, areas[0] + areas[1] - intersection


def shape_iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union [...] of widths and heights [..., 2], as if the boxes shared their centre."""
    intersection = torch.minimum(one, other).prod(-1)
    return intersection / (one.prod(-1) + other.prod(-1) - intersection).clamp(min=EPSILON)


def complete_iou(found: Tensor, wanted: Tensor) -> Tensor:
    """Overlap less penalties for distant centres and other aspect ratios, at most 1: [...] of boxes [..., 4].

    Unlike the overlap alone it has a slope where boxes do not meet. Source: Zheng et al., "Distance-IoU loss", 2020,
    equations 7 to 11.
    """
    intersection, union = overlap(found, wanted)
    iou = intersection / (union + EPSILON)
    (centre, size), (wanted_centre, wanted_size) = centre_and_size(found), centre_and_size(wanted)
    hull = torch.maximum(found[..., 2:], wanted[..., 2:]) - torch.minimum(found[..., :2], wanted[..., :2])
    distance = (centre - wanted_centre).square().sum(-1) / (hull.square().sum(-1) + EPSILON)
    angles = [torch.atan(each[..., 0] / (each[..., 1] + EPSILON)) for each in (size, wanted_size)]
    aspect = (angles[0] - angles[1]).square() * (4 / math.pi**2)
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect + EPSILON)
    return iou - distance - weight * aspect


def best_boxes(boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """What is shown of one image: boxes float [k, 4], scores float [k] that fall, labels int64 [k].

    boxes [S, 4]; scores [S, classes]: a place may show boxes of several classes.
    """
    classes = scores.shape[1]
    best, place = scores.flatten().topk(min(MOST_CANDIDATES, scores.numel()))
    place = place[best > SMALLEST_SCORE]
    best, labels, boxes = best[: len(place)], place % classes, boxes[place // classes]
    kept = batched_nms(boxes, best, labels, NMS_IOU)[:MOST_BOXES]
    return {"boxes": boxes[kept], "scores": best[kept], "labels": labels[kept]}
