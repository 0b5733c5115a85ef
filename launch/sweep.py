"""Sweeps: one list of more arguments for each task of a job array."""

import json
from collections.abc import Sequence
from pathlib import Path

from launch.argv import UsageError

MOST = 10_000
HELP = 'for example ["--lr", "0.1"] on each line'


def arguments(array: str | None) -> list[tuple[str, ...]] | None:
    """More arguments for each task: none for N equal tasks, or the lines of a file; None for no array.

    Raises UsageError if the file is not one JSON list of strings per line, or a JSON list of such lists.
    """
    if array is None:
        return None
    if array.isascii() and array.isdigit():
        if not 1 <= int(array) <= MOST:
            raise UsageError(f"expected --array of 1 to {MOST} tasks, got {array}; use several runs")
        return [()] * int(array)
    path = Path(array).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text)
            if path.suffix == ".json"
            else [json.loads(row) for row in text.splitlines() if row.strip()]
        )
    except OSError as error:
        raise UsageError(
            f"expected a number of tasks or a file in --array, got {array!r}: {error.strerror}; {HELP}"
        ) from None
    except ValueError as error:
        raise UsageError(f"expected JSON in --array, got {path}: {error}; {HELP}") from None
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST:
        raise UsageError(f"expected 1 to {MOST} lists in --array, got {path}; {HELP}")
    for index, row in enumerate(rows):
        if not isinstance(row, list) or not all(isinstance(word, str) for word in row):
            raise UsageError(f"expected lists of strings in --array, got {row!r} as number {index} of {path}; {HELP}")
    return [tuple(row) for row in rows]


def folders(run: Path, tasks: Sequence[tuple[str, ...]] | None) -> list[Path]:
    """The folder of each task, which is a run of its own; the run's folder itself without an array."""
    return [run] if tasks is None else [run / f"task-{index}" for index in range(len(tasks))]
