"""Boxes of a batch as detectors take them, and a loader that moves them along when an image is mirrored."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddp.draws import Draws, Stream, shifted
from ddp.loader import Batch, Loader


@dataclass
class BoxLoader(Loader):
    """A loader whose targets float32 [N, M, 5] are class (-1: no box), x1, y1, x2, y2 in pixels."""

    def __iter__(self) -> Iterator[Batch]:
        epoch, augment = self.epoch, self.augment
        for batch in super().__iter__():
            if not (augment.flip and augment.random):
                yield batch
                continue
            draws = Draws(augment.seed, epoch, batch.indices.to(batch.targets.device))
            mirrored = shifted(draws.bits(Stream.SHIFT_AND_FLIP), 32) & 1  # as ddp/augment.py reads them
            yield replace(batch, targets=_mirrored(batch.targets, mirrored, batch.inputs.shape[3]))


def _mirrored(targets: Tensor, which: Tensor, width: int) -> Tensor:
    """Targets [N, M, 5] of images of which those where int64 [N] is 1 are mirrored."""
    label, x1, y1, x2, y2 = targets.unbind(2)
    other = torch.stack([label, width - x2, y1, width - x1, y2], dim=2)
    return torch.where(which.view(-1, 1, 1) == 1, other, targets)


def unpacked(planes: Tensor) -> Tensor:
    """Bit planes uint8 [N, P, H, W] -> masks uint8 [N, 8 P, H, W], 0 or 1: bit j of plane k is instance 8 k + j."""
    places = torch.arange(8, dtype=torch.uint8, device=planes.device).view(8, 1, 1)
    return (planes.unsqueeze(2).bitwise_right_shift(places) & 1).flatten(1, 2)


def target_dicts(batch: Batch, *, padded: bool, masks: bool) -> list[dict[str, Tensor]]:
    """What a detector compares each sample with: boxes float32 [k, 4], labels int64 [k] and, if asked, masks [k, H, W].

    If `padded`, rows without a box stay, with a negative label: so nobody has to wait for a GPU to count the boxes.
    """
    labels, boxes = batch.targets[..., 0].long(), batch.targets[..., 1:]
    if padded:
        return [{"boxes": box, "labels": label} for box, label in zip(boxes, labels, strict=True)]
    real = labels >= 0
    targets = [
        {"boxes": box[here], "labels": label[here]} for box, label, here in zip(boxes, labels, real, strict=True)
    ]
    if masks:
        assert batch.masks is not None
        for target, instances, here in zip(targets, unpacked(batch.masks), real, strict=True):
            target["masks"] = instances[: len(here)][here]
    return targets
