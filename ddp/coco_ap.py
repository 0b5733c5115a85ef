"""COCO's average precision of boxes and masks, by pycocotools, which need not be installed. Imports numpy only.

Source: cocodataset.org, "Detection evaluation". pycocotools is what published figures are computed with.
"""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

CROWD = -2
"""Classes up to this are regions that hold too many objects to tell apart: class -2 - c is a crowd of class c.

What is found there is neither right nor wrong, and they train nothing."""
IOU_50, IOU_75 = 0, 5
"""Positions of those overlaps among the ten of COCO, 0.50 to 0.95."""
COLUMNS = 7
"""Of `Instances.rows`."""


@dataclass(frozen=True)
class Instances:
    """Objects of a split, as they are or as they were found."""

    rows: np.ndarray
    """float64 [k, 7]: image, class, score (of no meaning for what is there), x1, y1, x2, y2."""
    masks: list[bytes] | None
    """Of each row, as pycocotools compresses it."""


@dataclass(frozen=True)
class Precision:
    """Average precision in [0, 1]; None where there is nothing to find."""

    ap: float | None
    """Mean over overlaps from 0.50 to 0.95."""
    ap50: float | None
    ap75: float | None


def available() -> bool:
    """Whether pycocotools is installed."""
    return find_spec("pycocotools") is not None


def compressed(masks: np.ndarray) -> list[bytes]:
    """Masks bool or uint8 [k, H, W] as run lengths."""
    encoded = import_module("pycocotools.mask").encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [each["counts"] for each in encoded]


def _annotations(instances: Instances, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    for number, (image, label, score, x1, y1, x2, y2) in enumerate(instances.rows.tolist()):
        crowd = label <= CROWD
        yield {
            "id": number + 1,  # pycocotools takes 0 for none
            "image_id": int(image),
            "category_id": int(CROWD - label if crowd else label),
            "score": score,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(crowd),
        } | ({} if instances.masks is None else {"segmentation": {"size": size, "counts": instances.masks[number]}})


def average_precision(
    truth: Instances, found: Instances, images: int, size: tuple[int, int], kind: Literal["bbox", "segm"]
) -> Precision:
    """Of boxes or of masks of all sizes, over the images 0 to `images` - 1 of height x width pixels."""
    coco = import_module("pycocotools.coco").COCO
    classes = sorted({int(CROWD - label if label <= CROWD else label) for label in truth.rows[:, 1]})

    def index(instances: Instances) -> Any:
        made = coco()
        made.dataset = {
            "images": [{"id": image, "height": size[0], "width": size[1]} for image in range(images)],
            "categories": [{"id": label} for label in classes],
            "annotations": list(_annotations(instances, size)),
        }
        made.createIndex()
        return made

    with redirect_stdout(io.StringIO()):  # it tells how long each part took
        evaluation = import_module("pycocotools.cocoeval").COCOeval(index(truth), index(found), kind)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # overlaps, recalls, classes; -1 where there is no object

    def mean(values: np.ndarray) -> float | None:
        known = values[values > -1]
        return float(known.mean()) if known.size else None

    return Precision(mean(precision), mean(precision[IOU_50]), mean(precision[IOU_75]))
