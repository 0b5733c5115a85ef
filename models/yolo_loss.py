"""Where YOLO's places are, what they say, and the loss of each sample: tensors only, without a loop or a wait."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from models.boxes import centre_and_size, complete_iou, overlap, shape_iou

BOX_WEIGHT, EMPTY_WEIGHT = 5.0, 0.5
"""Of the boxes, and of the objectness where no box is.

Source: Redmon et al., "You only look once", 2016, section 2.2."""
IGNORE_IOU = 0.5
"""A place without a box of its own whose prediction overlaps one more than this is not told that it is empty.

Source: Redmon, Farhadi 2018, section 2.1."""
LARGEST_GROWTH = 6.0
"""Logarithm of the largest factor between an anchor and its box; keeps the first steps finite."""


class Places(nn.Module):
    """The S places where boxes are predicted: for each grid, finest first, each anchor, each row, each column."""

    start: Tensor
    """[S, 2]: left and upper edge of a place's cell, in pixels."""
    stride: Tensor
    """[S, 1]: side of the cell, in pixels."""
    anchor: Tensor
    """[S, 2]: width and height of the anchor, in pixels."""
    anchors: Tensor
    """[A, 2]: all anchors, in pixels."""
    grids: Tensor
    """int64 [A, 3]: of the grid of each anchor, the first place with that anchor, the columns, the rows."""
    cell: Tensor
    """[A]: side of the cells of each anchor's grid, in pixels."""

    def __init__(
        self, strides: Sequence[int], anchors: Sequence[Sequence[tuple[float, float]]], size: tuple[int, int]
    ) -> None:
        """`anchors` are shares of the width and the height of the image, `size` its height and width in pixels."""
        super().__init__()
        height, width = size
        start, stride, anchor, grids, first = [], [], [], [], 0
        for side, shares in zip(strides, anchors, strict=True):
            rows, columns = height // side, width // side
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            corners = torch.stack([x, y], dim=2).view(-1, 2) * float(side)
            for share in shares:
                start.append(corners)
                stride.append(torch.full((rows * columns, 1), float(side)))
                anchor.append(torch.tensor([[share[0] * width, share[1] * height]]).expand(rows * columns, 2))
                grids.append((first, columns, rows))
                first += rows * columns
        sizes = [(share[0] * width, share[1] * height) for shares in anchors for share in shares]
        sides = [float(side) for side, shares in zip(strides, anchors, strict=True) for _ in shares]
        tables = {
            "start": torch.cat(start),
            "stride": torch.cat(stride),
            "anchor": torch.cat(anchor),
            "anchors": torch.tensor(sizes),
            "grids": torch.tensor(grids),
            "cell": torch.tensor(sides),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def assigned(self, boxes: Tensor) -> Tensor:
        """The place of each box [..., 4], int64 [...]: the cell that holds its centre, in the grid of the anchor whose
        width and height fit best. A place may get several boxes."""
        centre, size = centre_and_size(boxes)
        best = shape_iou(size.unsqueeze(-2), self.anchors).argmax(-1)
        first, columns, rows = self.grids[best].unbind(-1)
        x, y = (centre / self.cell[best].unsqueeze(-1)).long().unbind(-1)
        zero = torch.zeros_like(columns)
        x, y = torch.clamp(x, zero, columns - 1), torch.clamp(y, zero, rows - 1)
        return first + y * columns + x


def decode(logits: Tensor, places: Places) -> Tensor:
    """Predictions [N, S, 4 or more] -> boxes [N, S, 4]: the centre is within its cell, the size a multiple of the
    anchor's."""
    centre = places.start + logits[..., :2].sigmoid() * places.stride
    half = places.anchor * logits[..., 2:4].clamp(max=LARGEST_GROWTH).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def encode(boxes: Tensor, place: Tensor, places: Places) -> Tensor:
    """The four numbers [..., 4] that place int64 [...] must predict for boxes [..., 4]; undoes `decode`."""
    centre, size = centre_and_size(boxes)
    within = (centre - places.start[place]) / places.stride[place]
    return torch.cat([torch.logit(within, eps=1e-6), (size / places.anchor[place]).log()], dim=-1)


def yolo_losses(logits: Tensor, places: Places, boxes: Tensor, labels: Tensor) -> Tensor:
    """Loss of each sample, [N], from its own boxes alone, divided by their number.

    logits [N, S, 5 + classes]; boxes [N, M, 4], labels int64 [N, M], where a negative label is no box.
    """
    real = labels >= 0
    weight = real.to(logits.dtype)
    count = weight.sum(1).clamp(min=1)
    decoded = decode(logits, places)
    place = places.assigned(boxes)
    boxes_found = decoded.gather(1, place.unsqueeze(-1).expand(-1, -1, 4))
    classes = logits.shape[2] - 5
    classes_found = logits[..., 5:].gather(1, place.unsqueeze(-1).expand(-1, -1, classes))
    box_loss = ((1 - complete_iou(boxes_found, boxes)) * weight).sum(1)
    wanted = one_hot(labels.clamp(min=0), classes).to(logits.dtype)
    class_loss = binary_cross_entropy_with_logits(classes_found, wanted, reduction="none").sum(2)
    holds, empty = _objectness(decoded.detach(), place, boxes, real)
    object_loss = binary_cross_entropy_with_logits(logits[..., 4], holds, reduction="none")
    object_loss = (object_loss * (holds + EMPTY_WEIGHT * empty)).sum(1)
    return (BOX_WEIGHT * box_loss + (class_loss * weight).sum(1) + object_loss) / count


@torch.no_grad()
def _objectness(decoded: Tensor, place: Tensor, boxes: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Which places hold a box, and which must say that they hold none: 0 or 1, [N, S] each.

    decoded [N, S, 4], place int64 [N, M], boxes [N, M, 4], real bool [N, M].
    """
    holds = torch.zeros(decoded.shape[:2], dtype=decoded.dtype, device=decoded.device)
    holds = holds.scatter_reduce(1, place, real.to(decoded.dtype), "amax")
    intersection, union = overlap(decoded.unsqueeze(2), boxes.unsqueeze(1))
    near = ((intersection > IGNORE_IOU * union) & real.unsqueeze(1)).any(2)
    return holds, (1 - holds) * (~near).to(decoded.dtype)
