"""Tables of numbers: read as they stand, standardised by the training set, and what is wrong is named with its line."""

from pathlib import Path

import numpy as np
import pytest

from ddp.datasets import table
from ddp.folds import folded
from ddp.input_config import InputConfig
from ddp.source import Dataset

TRAIN = "a,b,target\n1,10,0.5\n2,10,-1\n6,10,1e3\n"


def config_of(root: Path, train: str = TRAIN, val: str | None = TRAIN) -> InputConfig:
    """Options of a folder with these tables."""
    (root / "train.csv").write_text(train, encoding="utf-8")
    if val is not None:
        (root / "val.csv").write_text(val, encoding="utf-8")
    return InputConfig(data="table", data_dir=root)


def load(config: InputConfig) -> Dataset:
    return table.load(config, (3, 32, 32), 10)


def test_rows_are_those_of_the_lines_standardised_by_the_training_set(tmp_path: Path) -> None:
    val = "\ufefftarget, b ,a\n7,10,3\n\n-8,13,2\n"
    config = config_of(tmp_path, val=val)
    dataset = load(config)
    assert table.count(config) == 3
    assert (dataset.shape, dataset.classes) == ((2,), ("target",))
    assert dataset.train.labels.tolist() == [[0.5], [-1.0], [1000.0]]
    assert dataset.test.labels.tolist() == [[7.0], [-8.0]]
    std = np.std([1, 2, 6])
    assert dataset.train.inputs is not None
    assert dataset.test.inputs is not None
    assert dataset.train.inputs.dtype == np.float32
    assert dataset.train.labels.dtype == np.float32
    np.testing.assert_allclose(dataset.train.inputs, [[-2 / std, 0], [-1 / std, 0], [3 / std, 0]], rtol=1e-6)
    np.testing.assert_allclose(dataset.test.inputs, [[0, 0], [-1 / std, 3]], atol=1e-6)


def test_labels_are_classes_that_sort_as_numbers_if_all_are(tmp_path: Path) -> None:
    train = "x,label\n1,10\n2,9\n3,10\n"
    dataset = load(config_of(tmp_path, train, "x,label\n1,9\n"))
    assert dataset.classes == ("9", "10")
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([1, 0, 1], [0])
    assert dataset.train.labels.dtype == np.int64
    (tmp_path / "other").mkdir()
    assert load(config_of(tmp_path / "other", f"{train}4,b\n", "x,label\n1,9\n")).classes == ("10", "9", "b")


def test_a_table_test_csv_takes_the_place_of_val_csv(tmp_path: Path) -> None:
    config = config_of(tmp_path, val=None)
    with pytest.raises(ValueError, match=r"expected a file val\.csv or test\.csv in .*, got neither"):
        table.count(config)
    (tmp_path / "test.csv").write_text(TRAIN)
    assert len(load(config).test) == 3


def test_numbers_can_be_cut_into_folds(tmp_path: Path) -> None:
    config = InputConfig(data="table", data_dir=config_of(tmp_path).data_dir, folds=3, fold=1)
    whole = load(config)
    part = folded(whole, config, seed=0)
    assert (len(part.train), len(part.test)) == (2, 1)
    both = np.concatenate([part.train.labels, part.test.labels])
    assert sorted(both[:, 0].tolist()) == sorted(whole.train.labels[:, 0].tolist())


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("", TRAIN, r"expected a column target or a column label in line 1 of .*train\.csv, got an empty file"),
        ("a,b\n1,2\n", TRAIN, r"a column target or a column label in line 1 of .*train\.csv, got a,b; name one so"),
        ("a,target,label\n1,2,3\n", TRAIN, r"a column target or a column label in line 1 of .*, got a,target,label"),
        ("a,a,target\n1,2,3\n", TRAIN, r"expected different names in line 1 of .*train\.csv, got a,a,target"),
        ("target\n1\n", TRAIN, r"expected columns beside target in line 1 of .*train\.csv, got target"),
        ("a,b,target\n", TRAIN, r"expected rows in .*train\.csv, got none"),
        (f"{TRAIN}1,2\n", TRAIN, r"expected 3 values in .*train\.csv line 5, got 2; correct the line"),
        (f"{TRAIN}1,2,\n", TRAIN, r"expected a target in .*train\.csv line 5, got none; add it"),
        (f"{TRAIN}x,2,3\n", TRAIN, r"a finite number in column a of .*train\.csv line 5, got 'x'; correct the line"),
        (f"{TRAIN}\n1,nan,3\n", TRAIN, r"a finite number in column b of .*train\.csv line 6, got 'nan'"),
        (TRAIN, f"{TRAIN}1,2,inf\n", r"a finite number in column target of .*val\.csv line 5, got 'inf'"),
        (
            TRAIN,
            "a,c,target\n1,2,3\n",
            r"the columns of train\.csv in line 1 of .*val\.csv: a,b,target, got a,c,target",
        ),
        ("a,label\n1,x\n", "a,label\n1,x\n1,y\n", r"expected a label of train\.csv in .*val\.csv line 3, got 'y'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, train: str, val: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(config_of(tmp_path, train, val))


def test_text_in_another_encoding_and_a_missing_table_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (tmp_path / "val.csv").write_bytes("a,b,target\n1,2,ä\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"expected a table in UTF-8 in .*val\.csv, got"):
        table.count(config)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(ValueError, match=r"expected a file train\.csv in .*, got none"):
        table.count(config)
    with pytest.raises(ValueError, match="expected --data-dir with --data table, got none"):
        table.count(InputConfig(data="table"))
