"""COCO's AP of detections that were made by hand."""

import numpy as np
import pytest

from ddp import coco_ap
from ddp.coco_ap import CROWD, Instances, average_precision, compressed


def rows(*each: tuple[float, ...]) -> np.ndarray:
    return np.array(each, dtype=np.float64).reshape(-1, 7)


TRUTH = rows((0, 1, 1, 0, 0, 10, 10), (1, 1, 1, 20, 20, 30, 30))


def test_ap_of_hand_made_detections() -> None:
    """Two objects of one class: found exactly, one of them, one beside it, and one by an overlap of 0.7."""

    def ap(found: np.ndarray, truth: np.ndarray = TRUTH) -> coco_ap.Precision:
        return average_precision(Instances(truth, None), Instances(found, None), 3, (40, 40), "bbox")

    perfect = ap(TRUTH)
    assert (perfect.ap, perfect.ap50, perfect.ap75) == (1, 1, 1)
    half = ap(rows((0, 1, 0.9, 0, 0, 10, 10), (1, 1, 0.8, 0, 0, 10, 10)))
    assert half.ap50 == pytest.approx(51 / 101)  # recall up to 0.5 of 101 recalls, at precision 1
    late = ap(rows((0, 1, 0.8, 0, 0, 10, 10), (1, 1, 0.9, 0, 0, 10, 10)))
    assert late.ap50 == pytest.approx(51 / 101 / 2)  # the wrong one comes first
    near = ap(rows((0, 1, 1, 0, 0, 7, 10), (1, 1, 1, 20, 20, 27, 30)))
    assert (near.ap50, near.ap75) == (1, 0)
    assert near.ap == pytest.approx(0.5)  # 0.50 to 0.70 of ten overlaps
    assert ap(rows()).ap50 == 0
    assert ap(TRUTH, rows()).ap50 is None
    other_class = TRUTH.copy()
    other_class[:, 1] = 0
    assert ap(other_class).ap50 == 0


def test_what_is_found_in_a_crowd_is_not_wrong() -> None:
    crowd = np.concatenate([TRUTH, rows((2, CROWD - 1, 1, 0, 0, 40, 40))])
    found = np.concatenate([TRUTH, rows((2, 1, 5, 3, 3, 9, 9))])
    precision = average_precision(Instances(crowd, None), Instances(found, None), 3, (40, 40), "bbox")
    assert precision.ap == 1


def test_masks_have_an_ap_of_their_own() -> None:
    masks = np.zeros((2, 40, 40), dtype=bool)
    masks[0, :10, :10] = masks[1, 20:30, 20:30] = True
    half = masks.copy()
    half[0, :, 5:] = False
    truth = Instances(TRUTH, compressed(masks))
    assert average_precision(truth, Instances(TRUTH, compressed(masks)), 3, (40, 40), "segm").ap == 1
    found = average_precision(truth, Instances(TRUTH, compressed(half)), 3, (40, 40), "segm")
    assert (found.ap50, found.ap75) == (1, pytest.approx(51 / 101 / 2))
