"""COCO's files: whole images in a square, boxes and masks that move with them, and mistakes that are named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddp.coco_ap import CROWD
from ddp.coco_index import read_index
from ddp.datasets import coco, coco_masks
from ddp.input_config import InputConfig
from ddp.mistake import Mistake
from ddp.source import Dataset

NATIVE = (3, 64, 64)
WIDTH, HEIGHT = 128, 96
"""Of the images; at 64 pixels they are 64 x 48, 8 pixels from the upper edge."""
SQUARES = [(16, 12, 40, 40), (80, 20, 20, 60), (60, 4, 12, 12)]
"""x, y, width, height of the objects of the first image."""


def polygon(box: tuple[int, int, int, int]) -> list[list[int]]:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotated(images: list[str]) -> dict[str, Any]:
    """The first image has three objects and a crowd, the second none; categories are 3 (cat) and 7 (dog)."""
    boxes = [
        {"id": 10 + n, "image_id": 5, "category_id": (3, 7, 7)[n], "bbox": list(box), "segmentation": polygon(box)}
        for n, box in enumerate(SQUARES)
    ]
    runs = [0, HEIGHT * 8, HEIGHT * (WIDTH - 8)]  # the 8 leftmost columns
    crowd = {"id": 2, "image_id": 5, "category_id": 3, "iscrowd": 1, "bbox": [0, 0, 8, HEIGHT]}
    empty = {"id": 1, "image_id": 5, "category_id": 3, "bbox": [5, 5, 0, 9], "segmentation": []}
    return {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [
            {"id": 5 + number, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for number, name in enumerate(images)
        ],
        "annotations": [crowd | {"segmentation": {"counts": runs, "size": [HEIGHT, WIDTH]}}, empty, *boxes],
    }


def picture(path: Path) -> None:
    """Grey, with the first object red."""
    pixels = np.full((HEIGHT, WIDTH, 3), 100, dtype=np.uint8)
    x, y, width, height = SQUARES[0]
    pixels[y : y + height, x : x + width] = (255, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(root: Path, *, official: bool) -> InputConfig:
    for split in ("train", "val"):
        names = [f"{split}-{number}.png" for number in range(2)]
        folder = root / f"{split}2017" if official else root / "images"
        for name in names:
            picture(folder / name)
        json_file = root / "annotations" / f"instances_{split}2017.json" if official else root / f"{split}.json"
        json_file.parent.mkdir(exist_ok=True)
        json_file.write_text(json.dumps(annotated(names if official else [f"images/{name}" for name in names])))
    return InputConfig(data="coco", data_dir=root)


@pytest.fixture
def masks(tmp_path: Path) -> Dataset:
    return coco_masks.load(write(tmp_path, official=True), NATIVE, 90)


@pytest.mark.parametrize("official", [True, False])
def test_both_layouts_are_read(tmp_path: Path, official: bool) -> None:
    config = write(tmp_path, official=official)
    assert coco.count(config) == coco_masks.count(config) == 2
    dataset = coco.load(config, NATIVE, 90)
    assert (dataset.classes, dataset.planes, dataset.stored) == (("cat", "dog"), 0, (3, 64, 64))
    assert len(dataset.train) == len(dataset.test) == 2
    assert dataset.test.read(1).shape == (3, 64, 64)


def test_boxes_shrink_and_move_with_the_image_largest_first_and_crowds_train_nothing(masks: Dataset) -> None:
    expected = [
        [0, 8, 14, 28, 34],
        [1, 40, 18, 50, 48],
        [1, 30, 10, 36, 16],
        [CROWD, 0, 8, 4, 56],
    ]
    assert masks.train.labels[0].tolist() == expected
    assert masks.train.labels[1, :, 0].tolist() == [-1] * 4


def test_the_whole_image_is_in_the_middle_of_a_black_square(masks: Dataset) -> None:
    image = masks.train.read(0)
    assert not image[:3, :8].any()
    assert not image[:3, 56:].any()
    assert (image[:3, 9:55, 60] == 100).all()
    red = image[0] > 180
    assert (red.any(0).nonzero()[0][[0, -1]] == (8, 27)).all()
    assert (red.any(1).nonzero()[0][[0, -1]] == (14, 33)).all()


def test_each_mask_fills_its_box(masks: Dataset) -> None:
    plane = masks.train.read(0)[3]
    for place, (_, x1, y1, x2, y2) in enumerate(masks.train.labels[0].astype(int).tolist()):
        mask = plane >> place & 1
        inside = mask[y1:y2, x1:x2]
        assert inside[1:-1, 1:-1].all()
        assert int(mask.sum()) - int(inside.sum()) <= x2 - x1 + y2 - y1 + 1  # polygons are drawn with their edges
    assert not masks.train.read(1)[3].any()


def test_of_more_objects_than_fit_the_largest_are_kept_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, official=True)
    monkeypatch.setattr(coco, "MOST_BOXES", 2)
    with pytest.warns(UserWarning, match="an image has 4 objects; of each image the 2 largest are kept"):
        coco.count(config)
    assert coco.load(config, NATIVE, 90).train.labels[0].tolist() == [[0, 8, 14, 28, 34], [1, 40, 18, 50, 48]]


def change(file: Path, key: str, value: Any) -> None:
    found = json.loads(file.read_text())
    if key in found["annotations"][-1]:
        found["annotations"][-1][key] = value
    else:
        found[key] = value
    file.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_id", 99, "expected an image of annotation 12 of .*, got 99"),
        ("category_id", 4, "expected a category of annotation 12 of .*, got 4"),
        ("bbox", None, "expected COCO instances in .*; replace the file"),
        ("images", [], "expected images in .*, got none"),
        ("categories", [{"id": 3, "name": "cat"}, {"id": 7, "name": "cow"}], "got others: cow, dog"),
    ],
)
def test_what_is_wrong_in_the_json_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    config = write(tmp_path, official=False)
    change(tmp_path / "train.json", key, value)
    with pytest.raises(Mistake, match=message):
        coco.count(config)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"expected annotations/instances_train2017.json or train.json in"):
        coco.count(InputConfig(data="coco", data_dir=tmp_path))
    config = write(tmp_path, official=True)
    dataset = coco.load(config, NATIVE, 90)
    (tmp_path / "train2017" / "train-0.png").write_bytes(b"no image")
    with pytest.raises(Mistake, match=r"expected an image in .*train-0.png"):
        dataset.train.read(0)
    Image.new("RGB", (WIDTH, 10)).save(tmp_path / "train2017" / "train-0.png")
    with pytest.raises(Mistake, match=r"expected an image of 128x96 pixels in .*, got 128x10"):
        dataset.train.read(0)
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(Mistake, match=r"expected a file instances_val2017.json beside"):
        coco.count(config)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(Mistake, match=r"expected JSON in .*broken.json"):
        read_index(tmp_path / "broken.json", outlines=False)
