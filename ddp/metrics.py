"""What a confusion matrix says. Rows are the truth, columns the prediction; what is not defined is None.

Samples are what was counted: images of a classifier, pixels in segmentation.
"""

from collections.abc import Sequence

Confusion = Sequence[Sequence[int]]
"""Samples [classes, classes]: of row's class that were taken for the column's."""
Shares = tuple[float | None, ...]
"""One value in [0, 1] per class."""

NA = "n/a"
COLUMNS = ("class", "precision", "recall", "F1", "support")
IOU_COLUMNS = ("class", "IoU", "recall", "pixels")


def _ratios(parts: Sequence[int], wholes: Sequence[int]) -> Shares:
    return tuple(part / whole if whole else None for part, whole in zip(parts, wholes, strict=True))


def _hits(confusion: Confusion) -> list[int]:
    return [row[label] for label, row in enumerate(confusion)]


def support(confusion: Confusion) -> tuple[int, ...]:
    """Samples of each class."""
    return tuple(sum(row) for row in confusion)


def predicted(confusion: Confusion) -> tuple[int, ...]:
    """Samples that were taken for each class."""
    return tuple(sum(column) for column in zip(*confusion, strict=True))


def accuracy(confusion: Confusion) -> float | None:
    """Share of all samples on the diagonal; None without samples."""
    return _ratios([sum(_hits(confusion))], [sum(support(confusion))])[0]


def precision(confusion: Confusion) -> Shares:
    """Share of the samples taken for a class that are of it; None for a class that was never predicted."""
    return _ratios(_hits(confusion), predicted(confusion))


def recall(confusion: Confusion) -> Shares:
    """Share of a class's samples that were taken for it; None for a class without samples."""
    return _ratios(_hits(confusion), support(confusion))


def f1(confusion: Confusion) -> Shares:
    """Harmonic mean of precision and recall, 2 hits / (support + predicted); None if a class occurs in neither."""
    wholes = [of + taken for of, taken in zip(support(confusion), predicted(confusion), strict=True)]
    return _ratios([2 * hits for hits in _hits(confusion)], wholes)


def iou(confusion: Confusion) -> Shares:
    """Intersection over union, hits / (support + predicted - hits); None if a class occurs in neither."""
    hits = _hits(confusion)
    either = [of + taken - hit for of, taken, hit in zip(support(confusion), predicted(confusion), hits, strict=True)]
    return _ratios(hits, either)


def mean_iou(confusion: Confusion) -> float | None:
    """Mean IoU over the classes that occur in truth or prediction (mIoU); None if none does."""
    known = [share for share in iou(confusion) if share is not None]
    return sum(known) / len(known) if known else None


def macro(shares: Shares) -> float | None:
    """Mean over the classes, each with equal weight; None if any class has no value, for the rest would flatter."""
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known and len(known) == len(shares) else None


def _text(share: float | None) -> str:
    return NA if share is None else f"{share:.4f}"


def _printable(name: str) -> str:
    """A name without line breaks and escape sequences: class names are folder names, which may hold anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _check_shape(confusion: Confusion, names: Sequence[str]) -> None:
    if len(confusion) != len(names) or any(len(row) != len(names) for row in confusion):
        shape = [len(confusion), *sorted({len(row) for row in confusion})]
        raise ValueError(f"expected a confusion matrix of {len(names)} x {len(names)} for the names, got {shape}")


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join((label.ljust(widths[0]), *numbers)))
    return "\n".join(lines)


def _has_undefined(rows: Sequence[Sequence[str]]) -> bool:
    return any(NA in row[1:] for row in rows)


def classification_report(confusion: Confusion, names: Sequence[str]) -> str:
    """A table for the terminal: a row per class, then macro averages and the accuracy over all samples.

    Raises ValueError unless the matrix is square with a row for each name.
    """
    _check_shape(confusion, names)
    measures = (precision(confusion), recall(confusion), f1(confusion))
    counts = support(confusion)
    rows: list[tuple[str, ...]] = [COLUMNS]
    for name, *shares, samples in zip(names, *measures, counts, strict=True):
        rows.append((_printable(name), *map(_text, shares), str(samples)))
    rows.append(("macro average", *(_text(macro(measure)) for measure in measures), str(sum(counts))))
    rows.append(("accuracy", "", "", _text(accuracy(confusion)), str(sum(counts))))
    undefined = "\nn/a: a denominator is 0, for a class that has no samples or was never predicted"
    return _table(rows) + (undefined if _has_undefined(rows) else "")


def iou_report(confusion: Confusion, names: Sequence[str]) -> str:
    """A table for the terminal: IoU and recall of each class, then mIoU and the accuracy over all pixels.

    Raises ValueError unless the matrix is square with a row for each name.
    """
    _check_shape(confusion, names)
    counts = support(confusion)
    rows: list[tuple[str, ...]] = [IOU_COLUMNS]
    for name, share, found, pixels in zip(names, iou(confusion), recall(confusion), counts, strict=True):
        rows.append((_printable(name), _text(share), _text(found), str(pixels)))
    rows.append(("mIoU", _text(mean_iou(confusion)), "", str(sum(counts))))
    rows.append(("accuracy", "", _text(accuracy(confusion)), str(sum(counts))))
    undefined = "\nn/a: the class has no pixels; the mean leaves out those that were not predicted either"
    return _table(rows) + (undefined if _has_undefined(rows) else "")
