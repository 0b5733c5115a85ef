"""Rows of numbers: DIR/train.csv and DIR/val.csv (or DIR/test.csv), each with a header line and the same columns.

The column `target` holds a number to predict (regression), or `label` a class (classification); all other columns are
inputs. They are standardised by the mean and standard deviation of train.csv; targets stay in their own unit. The
classes are the different labels of train.csv, sorted; whole numbers sort as numbers.
"""

import csv
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ddp.images import data_root
from ddp.input_config import InputConfig
from ddp.mistake import Mistake, require
from ddp.source import Dataset, Shape, number_split

TARGET, LABEL = "target", "label"


@dataclass(frozen=True)
class _Table:
    """One file, as it was read."""

    path: Path
    columns: tuple[str, ...]
    """Of the inputs."""
    answer: str
    """The other column: target or label."""
    inputs: np.ndarray
    """float64 [rows, columns]."""
    answers: list[str]
    lines: list[int]
    """Line of each row in the file."""


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    require(math.isfinite(value), f"a finite number in column {column} of {where}", repr(text), "correct the line")
    return value


def _header(path: Path, names: list[str]) -> str:
    """The column that is to be predicted. Raises Mistake unless the header is as expected."""
    answers = [name for name in (TARGET, LABEL) if name in names]
    header = ",".join(names) or "an empty file"
    require(len(answers) == 1, f"a column {TARGET} or a column {LABEL} in line 1 of {path}", header, "name one so")
    require(len(set(names)) == len(names), f"different names in line 1 of {path}", header, "rename a column")
    require(len(names) > 1, f"columns beside {answers[0]} in line 1 of {path}", header, "add the inputs")
    return answers[0]


def _read(path: Path) -> _Table:
    """Raises Mistake with the line that is not as expected."""
    inputs, answers, lines = [], [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, skipinitialspace=True)
            names = [name.strip() for name in next(reader, [])]
            answer = _header(path, names)
            for row in reader:
                if not row:
                    continue
                where = f"{path} line {reader.line_num}"
                require(len(row) == len(names), f"{len(names)} values in {where}", len(row), "correct the line")
                cells = {name: cell.strip() for name, cell in zip(names, row, strict=True)}
                answers.append(cells.pop(answer))
                require(bool(answers[-1]), f"a {answer} in {where}", "none", "add it")
                inputs.append([_number(text, name, where) for name, text in cells.items()])
                lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise Mistake(f"expected a table in UTF-8 in {path}, got {error}; save it as CSV in UTF-8") from None
    require(bool(lines), f"rows in {path}", "none", "add a line for each sample")
    columns = tuple(name for name in names if name != answer)
    return _Table(path, columns, answer, np.array(inputs), answers, lines)


@lru_cache(maxsize=2)
def _scan(train: Path, test: Path) -> tuple[_Table, _Table]:
    tables = _read(train), _read(test)
    header, other = ((*table.columns, table.answer) for table in tables)
    require(
        sorted(header) == sorted(other),
        f"the columns of {train.name} in line 1 of {test}: {','.join(header)}",
        ",".join(other),
        "give both files the same",
    )
    return tables


def _tables(config: InputConfig) -> tuple[_Table, _Table]:
    root = data_root(config)
    layout = "use DIR/train.csv and DIR/val.csv"
    require((root / "train.csv").is_file(), f"a file train.csv in {root}", "none", layout)
    for name in ("val.csv", "test.csv"):
        if (root / name).is_file():
            return _scan(root / "train.csv", root / name)
    raise Mistake(f"expected a file val.csv or test.csv in {root}, got neither; {layout}")


def count(config: InputConfig) -> int:
    """Training samples. Raises Mistake with the line of a table that cannot be read."""
    return len(_tables(config)[0].lines)


def _as_number(label: str) -> tuple[int, str]:
    return int(label), label


def _classes(labels: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=_as_number))
    except ValueError:
        return tuple(sorted(labels))


def _answers(table: _Table, classes: tuple[str, ...]) -> np.ndarray:
    """Targets float32 [rows, 1], or classes int64 [rows]. Raises Mistake with the line of one that cannot be."""
    where = [f"{table.path} line {line}" for line in table.lines]
    if table.answer == TARGET:
        numbers = [_number(text, TARGET, place) for text, place in zip(table.answers, where, strict=True)]
        return np.array(numbers, dtype=np.float32)[:, None]
    position = {label: number for number, label in enumerate(classes)}
    for label, place in zip(table.answers, where, strict=True):
        require(label in position, f"a label of train.csv in {place}", repr(label), "correct it, or train on it too")
    return np.array([position[label] for label in table.answers], dtype=np.int64)


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """The rows, standardised. Raises Mistake with the line of a table that cannot be read."""
    train, test = _tables(config)
    names = (TARGET,) if train.answer == TARGET else _classes(set(train.answers))
    mean, std = train.inputs.mean(axis=0), train.inputs.std(axis=0)
    std[std <= 1e-12 * np.abs(mean)] = 1.0  # a constant column says nothing, and becomes zero but for rounding
    same = [test.columns.index(name) for name in train.columns]
    splits = [
        number_split((inputs - mean) / std, _answers(table, names))
        for inputs, table in ((train.inputs, train), (test.inputs[:, same], test))
    ]
    shape = (len(train.columns),)
    return Dataset(train=splits[0], test=splits[1], shape=shape, stored=shape, classes=names, flip=False)
