"""Images listed in tables: DIR/train.csv and DIR/val.csv (or DIR/test.csv), with the columns file and label.

`file` is relative to DIR. The classes are the different labels of train.csv, sorted; whole numbers sort as numbers.
"""

import csv
import os
from functools import lru_cache
from pathlib import Path

from ddp.images import Listing, data_root, image_dataset
from ddp.input_config import InputConfig
from ddp.mistake import Mistake, require
from ddp.source import Dataset, Shape

COLUMNS = ("file", "label")


def _rows(table: Path) -> list[tuple[str, str, int]]:
    """File, label and line of each sample. Raises Mistake with the line that is not as expected."""
    rows = []
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            require(
                set(COLUMNS) <= set(header),
                f"the columns file,label in the first line of {table}",
                ",".join(header) or "an empty file",
                "add a header",
            )
            reader.fieldnames = header
            for row in reader:
                file, label = ((row[name] or "").strip() for name in COLUMNS)
                where = f"{table} line {reader.line_num}"
                require(bool(file and label), f"a file and a label in {where}", f"{file!r} and {label!r}", "add them")
                rows.append((file, label, reader.line_num))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Mistake(f"expected a table in UTF-8 in {table}, got {error}; save it as CSV in UTF-8") from None
    require(bool(rows), f"samples in {table}", "none", "add a line for each")
    return rows


def _check_files(table: Path, rows: list[tuple[str, str, int]]) -> None:
    """Raise Mistake with the first file that is not there; each folder is listed once, not each file looked up."""
    there: dict[str, set[str]] = {}
    for file, _, line in rows:
        folder, name = os.path.split(os.path.join(table.parent, file))
        if folder not in there:
            there[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        require(
            name in there[folder],
            f"the file {file} of {table} line {line} in {table.parent}",
            "none",
            "add it or remove the line",
        )


def _number(label: str) -> int | None:
    try:
        return int(label)
    except ValueError:
        return None


def _sorted(labels: set[str]) -> list[str]:
    numbers = {label: _number(label) for label in labels}
    if None in numbers.values():
        return sorted(labels)
    return sorted(labels, key=lambda label: (numbers[label], label))


@lru_cache(maxsize=2)
def _scan(train: Path, test: Path) -> tuple[Listing, Listing, list[str]]:
    """Both listings and the names of the classes. Raises Mistake with the line that is not as expected."""
    tables = {table: _rows(table) for table in (train, test)}
    classes = _sorted({label for _, label, _ in tables[train]})
    position = {label: number for number, label in enumerate(classes)}
    for _, label, line in tables[test]:
        require(
            label in position,
            f"a label of {train.name} in {test} line {line}",
            repr(label),
            "correct it, or add training samples of that class",
        )
    listings = []
    for table, rows in tables.items():
        _check_files(table, rows)
        listings.append(Listing(table.parent, [row[0] for row in rows], [position[row[1]] for row in rows]))
    return listings[0], listings[1], classes


def _tables(config: InputConfig) -> tuple[Path, Path]:
    root = data_root(config)
    layout = "use DIR/train.csv and DIR/val.csv"
    require((root / "train.csv").is_file(), f"a file train.csv in {root}", "none", layout)
    for name in ("val.csv", "test.csv"):
        if (root / name).is_file():
            return root / "train.csv", root / name
    raise Mistake(f"expected a file val.csv or test.csv in {root}, got neither; {layout}")


def count(config: InputConfig) -> int:
    """Training samples. Raises Mistake with the line of a table that is wrong or whose image is missing."""
    return len(_scan(*_tables(config))[0].names)


def load(config: InputConfig, native: Shape, classes: int) -> Dataset:
    """The images in the model's own size unless --image-size says otherwise; decoded when read."""
    train, test, names = _scan(*_tables(config))
    return image_dataset(config, native, (train, test), names)
