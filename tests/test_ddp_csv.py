"""Images listed in tables: read as they stand, and what is wrong is named with its file and line."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddp.datasets import csv, imagefolder
from ddp.input_config import InputConfig
from tests.test_ddp_datasets import image_folder

SHAPE = (3, 32, 32)


def tables(
    root: Path, train: str, val: str | None = "file,label\na.png,1\n", files: Sequence[str] = ("a.png",)
) -> Path:
    root.mkdir(exist_ok=True)
    for number, name in enumerate(files):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), number, dtype=np.uint8)).save(root / name)
    (root / "train.csv").write_text(train, encoding="utf-8")
    if val is not None:
        (root / "val.csv").write_text(val, encoding="utf-8")
    return root


def config_of(root: Path) -> InputConfig:
    return InputConfig(data="csv", data_dir=root)


def test_images_and_labels_are_those_of_the_lines(tmp_path: Path) -> None:
    train = "\ufefflabel, file,note\ndog,b.png,x\ncat,in/a.png,\n\ndog,b.png,\n"
    root = tables(tmp_path, train, "file,label\nin/a.png,dog\n", files=("in/a.png", "b.png"))
    dataset = csv.load(config_of(root), SHAPE, 0)
    assert csv.count(config_of(root)) == 3
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [1, 0, 1]
    assert [int(dataset.train.read(index)[0, 0, 0]) for index in range(3)] == [1, 0, 1]
    assert dataset.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "1"], ("1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["-1", "0", "-2"], ("-2", "-1", "0")),
    ],
)
def test_classes_are_sorted_as_numbers_if_all_are(tmp_path: Path, labels: list[str], classes: tuple[str, ...]) -> None:
    lines = "".join(f"a.png,{label}\n" for label in labels)
    root = tables(tmp_path, f"file,label\n{lines}", f"file,label\na.png,{labels[0]}\n")
    dataset = csv.load(config_of(root), SHAPE, 0)
    assert dataset.classes == classes
    assert [classes[label] for label in dataset.train.labels] == labels


def test_the_same_files_are_read_as_from_a_folder(tmp_path: Path) -> None:
    root = image_folder(tmp_path, size=300)
    for split in ("train", "val"):
        files = sorted((root / split).rglob("*.png"))
        lines = [f"{file.relative_to(root)},{file.parent.name}" for file in files]
        (root / f"{split}.csv").write_text("\n".join(["file,label", *lines]))
    options = {"data_dir": root, "image_size": 70}
    one = csv.load(InputConfig(data="csv", **options), SHAPE, 0)  # type: ignore[arg-type]
    other = imagefolder.load(InputConfig(data="imagefolder", **options), SHAPE, 0)  # type: ignore[arg-type]
    assert (one.shape, one.stored, one.classes) == (other.shape, other.stored, other.classes) != (one.stored,) * 3
    for mine, theirs in ((one.train, other.train), (one.test, other.test)):
        assert mine.labels.tolist() == theirs.labels.tolist()
        assert all(np.array_equal(mine.read(index), theirs.read(index)) for index in range(len(mine)))


def test_a_table_test_csv_takes_the_place_of_val_csv(tmp_path: Path) -> None:
    root = tables(tmp_path, "file,label\na.png,1\n", None)
    with pytest.raises(ValueError, match=r"expected a file val\.csv or test\.csv in .*, got neither"):
        csv.count(config_of(root))
    (root / "test.csv").write_text("file,label\na.png,1\na.png,1\n")
    assert len(csv.load(config_of(root), SHAPE, 0).test) == 2


GOOD = "file,label\na.png,1\n"


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("a.png,1\n", GOOD, r"expected the columns file,label in the first line of .*train\.csv, got a\.png,1; add a"),
        ("", GOOD, r"in the first line of .*train\.csv, got an empty file"),
        ("file,label\n", GOOD, r"expected samples in .*train\.csv, got none"),
        (f"{GOOD}a.png\n", GOOD, r"expected a file and a label in .*train\.csv line 3, got 'a\.png' and ''; add them"),
        (
            f"{GOOD}b.png,1\n",
            GOOD,
            r"expected the file b\.png of .*train\.csv line 3 in .*, got none; add it or remove",
        ),
        (f"{GOOD}no/a.png,1\n", GOOD, r"expected the file no/a\.png of .*train\.csv line 3"),
        (GOOD, f"{GOOD}\nc.png,1\n", r"expected the file c\.png of .*val\.csv line 4"),
        (GOOD, f"{GOOD}a.png,2\n", r"expected a label of train\.csv in .*val\.csv line 3, got '2'; correct it, or add"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, train: str, val: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        csv.count(config_of(tables(tmp_path, train, val)))


def test_text_in_another_encoding_and_a_missing_table_are_refused(tmp_path: Path) -> None:
    root = tables(tmp_path, GOOD)
    (root / "val.csv").write_bytes("file,label\nä.png,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"expected a table in UTF-8 in .*val\.csv, got"):
        csv.count(config_of(root))
    (root / "train.csv").unlink()
    with pytest.raises(ValueError, match=r"expected a file train\.csv in .*, got none"):
        csv.count(config_of(root))
    with pytest.raises(ValueError, match="expected --data-dir with --data csv, got none"):
        csv.count(InputConfig(data="csv"))


LIGHT = """
import sys
from pathlib import Path
from ddp import folds
from ddp.datasets import csv, imagefolder
from ddp.input_config import InputConfig
config = InputConfig(data="csv", data_dir=Path(sys.argv[1]), folds=2)
print(folds.training_samples(csv.count(config), config), {"torch", "PIL"} & set(sys.modules))
"""


def test_samples_are_counted_without_torch_and_without_pillow(tmp_path: Path) -> None:
    root = tables(tmp_path, f"{GOOD}a.png,1\na.png,2\n")
    done = subprocess.run([sys.executable, "-c", LIGHT, str(root)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 set()\n", done.stderr
