"""Pictures of shapes and photographs with a class for every pixel."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddp.datasets import shapes, voc
from ddp.input_config import InputConfig
from ddp.mistake import Mistake
from ddp.shapes import CLASSES, MOST_SHAPES, RING, draw


@pytest.mark.parametrize("size", [16, 64, 100])
def test_shapes_have_masks_that_do_not_overlap_and_boxes_around_them(size: int) -> None:
    seen = set()
    for index in range(60):
        picture, instances = draw(0, index, size)
        assert (picture.shape, picture.dtype) == ((3, size, size), np.uint8)
        assert 1 <= len(instances) <= MOST_SHAPES
        assert np.sum([each.mask for each in instances], axis=0).max() == 1
        for each in instances:
            left, top, right, bottom = each.box
            inside = each.mask[top:bottom, left:right]
            assert inside.sum() == each.mask.sum() > 0
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # noqa: PT018
        seen |= {each.number for each in instances}
    assert seen == set(range(len(CLASSES)))


def test_a_shape_stands_out_from_the_ground_and_a_ring_has_a_hole() -> None:
    for index in range(40):
        picture, instances = draw(1, index)
        ground = ~np.any([each.mask for each in instances], axis=0)
        for each in instances:
            difference = picture[:, each.mask].mean(1) - picture[:, ground].mean(1)
            assert np.abs(difference).min() > 20
            left, top, right, bottom = each.box
            middle = each.mask[(top + bottom) // 2, (left + right) // 2]
            assert middle == (each.number != RING)


def test_pictures_are_a_function_of_split_and_index() -> None:
    pictures = {(split, index): draw(split, index)[0].tobytes() for split in (0, 1) for index in range(20)}
    assert len(set(pictures.values())) == len(pictures)
    assert all(draw(*key)[0].tobytes() == picture for key, picture in pictures.items())


def test_the_mask_behind_a_picture_holds_the_numbers_of_its_shapes() -> None:
    config = InputConfig(data="shapes")
    data = shapes.load(config, (3, 64, 64), 5)
    assert shapes.count(config) == len(data.train) == 2048
    assert (data.shape, data.stored, data.planes) == ((3, 64, 64), (4, 64, 64), 1)
    stored = pickle.loads(pickle.dumps(data.test.read))(7)  # noqa: S301, as loader processes do
    picture, instances = draw(1, 7)
    assert np.array_equal(stored[:3], picture)
    for each in instances:
        assert (stored[3][each.mask] == 1 + each.number).all()
    assert (stored[3] > 0).sum() == sum(each.mask.sum() for each in instances)
    assert data.classes[1:] == CLASSES
    with pytest.raises(Mistake, match="expected --image-size of at least 16 with --data shapes, got 8"):
        shapes.count(InputConfig(data="shapes", image_size=8))


PALETTE = [value for number in range(256) for value in (number, 255 - number, 7)]


def photograph(root: Path, name: str, numbers: np.ndarray) -> None:
    """A picture whose red is ten times the number of each pixel's class, and its mask."""
    colours = np.zeros((*numbers.shape, 3), dtype=np.uint8)
    colours[..., 0] = np.where(numbers == 255, 0, 10 * numbers)
    Image.fromarray(colours).save(root / "JPEGImages" / f"{name}.jpg", quality=100, subsampling=0)
    mask = Image.fromarray(numbers)
    if name != "tall":  # one of the masks is grey, as those of the augmented set (SBD) are
        mask.putpalette(PALETTE)
    mask.save(root / "SegmentationClass" / f"{name}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    numbers = np.zeros((40, 60), dtype=np.uint8)
    numbers[:, 30:] = 20
    numbers[:, 28:31] = 255
    photograph(root, "wide", numbers)
    photograph(root, "tall", numbers.T.copy())
    (root / "ImageSets/Segmentation/train.txt").write_text("wide\ntall\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("wide\n")
    return tmp_path


def test_voc_is_read_with_masks_that_keep_their_numbers(folder: Path) -> None:
    config = InputConfig(data="voc", data_dir=folder, image_size=20)
    assert voc.count(config) == 2
    data = voc.load(config, (3, 64, 64), 21)
    assert (len(data.train), len(data.test), len(data.classes)) == (2, 1, 21)
    wide, tall = (data.train.read(row) for row in range(2))
    assert wide.shape == (4, 20, 20) == data.stored
    # Half the size, the middle 40 of 60 columns: the outline is at columns 28 to 30 of 60, 18 to 20 of 40.
    assert set(np.unique(wide[3])) == {0, 20, 255}  # nothing between two classes
    assert (wide[3, :, :9] == 0).all() and (wide[3, :, 11:] == 20).all()  # noqa: PT018
    assert np.abs(wide[0, :, :8].astype(int)).max() < 10  # the picture is cut as its mask is
    assert np.abs(wide[0, :, 12:].astype(int) - 200).max() < 10
    assert np.array_equal(tall[3], wide[3].T)
    large = voc.load(InputConfig(data="voc", data_dir=folder / "VOCdevkit" / "VOC2012"), (3, 70, 70), 21)
    assert (large.shape, large.stored, large.planes) == ((3, 70, 70), (4, 80, 80), 1)  # a margin for random crops


def test_voc_tells_a_changed_file_from_an_unchanged_one(folder: Path) -> None:
    data = voc.load(InputConfig(data="voc", data_dir=folder), (3, 32, 32), 21)
    assert data.train.identity is not None
    before = list(data.train.identity())
    assert list(data.train.identity()) == before
    masks = folder / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    (masks / "tall.png").write_bytes((masks / "tall.png").read_bytes() + b"changed")
    assert list(data.train.identity()) != before


def test_voc_says_what_is_missing_or_wrong(folder: Path) -> None:
    root = folder / "VOCdevkit" / "VOC2012"
    config = InputConfig(data="voc", data_dir=folder)
    with pytest.raises(Mistake, match=r"expected VOCdevkit/VOC2012/ImageSets/Segmentation in .*SegmentationClass"):
        voc.count(InputConfig(data="voc", data_dir=root / "SegmentationClass"))
    data = voc.load(config, (3, 32, 32), 21)
    photograph(root, "wide", np.full((40, 60), 21, dtype=np.uint8))
    with pytest.raises(Mistake, match=r"numbers below 21, or 255, in .*wide.png, got 21"):
        data.train.read(0)
    Image.new("RGB", (60, 40)).save(root / "SegmentationClass" / "wide.png")
    with pytest.raises(
        Mistake, match=r"expected numbers of classes \(a palette\) in .*wide.png, got an image of mode RGB"
    ):
        data.train.read(0)
    Image.new("P", (40, 40)).save(root / "SegmentationClass" / "wide.png")
    with pytest.raises(Mistake, match=r"expected the size of .*wide.jpg in .*wide.png, got \(40, 40\)"):
        data.train.read(0)
    (root / "SegmentationClass" / "wide.png").write_bytes(b"not an image")
    with pytest.raises(Mistake, match=r"got one that cannot be decoded"):
        data.train.read(0)
    voc._names.cache_clear()
    (root / "ImageSets/Segmentation/train.txt").write_text("wide\nlost\n")
    with pytest.raises(Mistake, match=r"expected the file JPEGImages/lost.jpg of .*train.txt"):
        voc.count(config)
