"""COCO's JSON of instances as plain arrays, which loader processes share and pickle cheaply. Imports numpy only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddp.mistake import Mistake, require


@dataclass(frozen=True, kw_only=True)
class Index:
    """One split. The instances of image i are rows `starts[i]` to `starts[i + 1]`: crowds last, before them large
    boxes before small ones."""

    names: np.ndarray
    """bytes [images]: paths of the files."""
    sizes: np.ndarray
    """int64 [images, 2]: height and width in pixels."""
    starts: np.ndarray
    """int64 [images + 1]."""
    classes: np.ndarray
    """int64 [instances]: position of the category among all, sorted by id."""
    crowd: np.ndarray
    """bool [instances]: whether it is a region with too many objects to tell apart."""
    boxes: np.ndarray
    """float64 [instances, 4]: x1, y1, x2, y2 in pixels of the file."""
    text: bytes
    """JSON of the outlines, polygons or run lengths, one after the other; empty if they were left out."""
    ends: np.ndarray
    """int64 [instances]: where each outline ends in `text`."""
    categories: tuple[str, ...]

    @property
    def most(self) -> int:
        """Instances of the image with the most."""
        return int(np.diff(self.starts).max())

    def outline(self, instance: int) -> Any:
        """The polygons or run lengths of an instance."""
        start = self.ends[instance - 1] if instance else 0
        return json.loads(self.text[start : self.ends[instance]])


def _parsed(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise Mistake(f"expected JSON in {file}, got a file that is none ({error}); replace it") from None
    missing = [
        key for key in ("images", "annotations", "categories") if not isinstance(found, dict) or key not in found
    ]
    require(not missing, f"COCO instances in {file}", f"no {' and no '.join(missing)}", "replace the file")
    require(bool(found["images"]), f"images in {file}", "none", "replace the file")
    return found


def read_index(file: Path, *, outlines: bool) -> Index:
    """The index of one JSON file. Raises Mistake with the annotation or image that is not as expected."""
    found = _parsed(file)
    try:
        categories = sorted((each["id"], each["name"]) for each in found["categories"])
        position = {number: place for place, (number, _) in enumerate(categories)}
        images = sorted((each["id"], each["file_name"], each["height"], each["width"]) for each in found["images"])
        place_of = {image[0]: place for place, image in enumerate(images)}
        rows = []
        for each in found["annotations"]:
            where = f"annotation {each['id']} of {file}"
            require(each["image_id"] in place_of, f"an image of {where}", each["image_id"], "add the image")
            require(each["category_id"] in position, f"a category of {where}", each["category_id"], "add the category")
            x, y, width, height = map(float, each["bbox"])
            if width > 0 and height > 0:  # COCO itself has some without an area
                place, crowd = place_of[each["image_id"]], bool(each.get("iscrowd"))
                outline = json.dumps(each["segmentation"]).encode() if outlines else b""
                box = (x, y, x + width, y + height)
                rows.append((place, crowd, -width * height, each["id"], position[each["category_id"]], box, outline))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, Mistake):
            raise
        raise Mistake(f"expected COCO instances in {file}, got one without {error}; replace the file") from None
    rows.sort(key=lambda row: row[:4])
    counts = np.bincount([row[0] for row in rows], minlength=len(images)) if rows else np.zeros(len(images), np.int64)
    return Index(
        names=np.array([image[1].encode() for image in images]),
        sizes=np.array([image[2:] for image in images], dtype=np.int64),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        classes=np.array([row[4] for row in rows], dtype=np.int64),
        crowd=np.array([row[1] for row in rows], dtype=bool),
        boxes=np.array([row[5] for row in rows], dtype=np.float64).reshape(-1, 4),
        text=b"".join(row[6] for row in rows),
        ends=np.cumsum([len(row[6]) for row in rows], dtype=np.int64),
        categories=tuple(name for _, name in categories),
    )
