"""`ringmark history DIR...`: the records of many runs as one trend per cell."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.history import summarise
from bench.record import FILE_NAME, Record, read
from bench.text import plural, value_text
from launch.argv import UsageError
from launch.grid_run import LOCK, RUNNING

MARKDOWN, HTML = "history.md", "history.html"
USAGE = """usage: ringmark history DIR...

Read all records in and below these folders, draw a trend of each cell, and mark changes of the environment (torch,
CUDA, driver, GPU, CPU, host, commit). history.md and history.html are written into the first folder."""


def gather(folders: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """All records in and below the folders, each once -> (records, complaints). Raises UsageError for none.

    A sweep's own file has copies of what the tasks of an array recorded in folders of their own; what a sweep is still
    measuring, or was when it was killed, is left out, since it will be measured again.
    """
    records: list[Record] = []
    complaints: list[str] = []
    seen: set[Path] = set()
    known: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"expected a folder with records in or below it, got {folder}; name one that is there")
        for file in sorted(folder.rglob(FILE_NAME)):
            if file.resolve() in seen or _is_running(file, folder):
                continue
            seen.add(file.resolve())
            found, wrong = read(file.parent)
            sound = [each for each in found if isinstance(each.cell, dict) and isinstance(each.environment, dict)]
            complaints += [f"{file.parent}: {each}" for each in wrong]
            if len(sound) < len(found):
                complaints.append(f"{file.parent}: {plural(len(found) - len(sound), 'line')} left out, no record")
            records += [each for each in sound if _is_new(each, known)]
    if not records:
        raise UsageError(f"expected {FILE_NAME} with records in or below the folders, got none; name --out folders")
    return records, complaints


def _is_running(file: Path, folder: Path) -> bool:
    """Whether a file lies where a sweep below the folder keeps the launches that it is busy with."""
    inside = [folder / above for above in file.relative_to(folder).parents if above != Path()]
    return any(above.name == RUNNING and (above.parent / LOCK).exists() for above in inside)


def _is_new(record: Record, known: set[str]) -> bool:
    """Whether no copy of a record was met before; it is one of those that were met from now on."""
    key = value_text([record.case, record.cell, record.time, record.environment])
    if key in known:
        return False
    known.add(key)
    return True


def history(argv: Sequence[str]) -> int:
    """`ringmark history` -> its exit code. Raises UsageError for a person's mistake."""
    from rich.console import Console

    from bench import summary_environment
    from bench.report import html, markdown, terminal
    from bench.section import Table
    from bench.summary import Summary, cleaned

    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return 0
    if not argv or any(word.startswith("-") for word in argv):
        raise UsageError(f"expected folders with records, got {' '.join(argv) or 'none'}; ringmark history runs")
    folders = [Path(word) for word in argv]
    records, complaints = gather(folders)
    section = summarise(records)
    summary = cleaned(
        Summary(
            facts=(*section.facts, summary_environment.fact(records)),
            tables=section.tables,
            plots=section.plots,
            failures=Table(title="", columns=(), rows=()),
            environment=summary_environment.table(records),
            remarks=tuple(complaints),
        )
    )
    (folders[0] / MARKDOWN).write_text(markdown(summary), encoding="utf-8", newline="\n")
    (folders[0] / HTML).write_text(html(summary), encoding="utf-8", newline="\n")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(terminal(summary))
    print(f"history: {folders[0] / HTML}")
    return 0
