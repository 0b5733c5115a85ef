"""`ringmark sweep GRID.toml --out DIR`: each cell in a launch of its own, and after any kill exactly the missing ones.

Only this process writes the folder's records, one write for each cell, when the cell's launch has ended; the launch
itself writes into a folder of its own. So a cell is either recorded or missing, whenever the sweep is killed.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.cell import key_of
from bench.record import FILE_NAME, Record, append
from bench.record import read as read_records
from launch.argv import UsageError, parse, to_argv
from launch.exit_codes import INTERRUPTED, OUT_OF_MEMORY, shell_code
from launch.grid import Grid, GridCell, load
from launch.processes import die_with
from launch.torchrun import PRELOAD, agent_command, worker_environment

LOCK, RUNNING, LOGS = "sweep.lock", "running", "logs"
GRACE_S = 20.0
"""How long a launch has to end after its deadline."""
LATE = "not done after its deadline"
MOST_WORDS = 400
"""Characters of a reason."""
SWEEP = "sweep"
"""Key of raw that says which cell of a sweep a record is."""
HELP = "Measure every cell of a grid, each in a launch of its own. Started again, it measures what is missing."


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Where a sweep's records are, and what to do with failures."""

    out: Path = Path("runs/sweep")
    """Folder for records.jsonl, the report and the logs of cells that failed."""
    retry_failed: bool = False
    """Measure cells again whose record says that they failed."""
    array: Path | None = None
    """Measure nothing; write one list of options per cell into this file, for `ringmark submit --array`."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one sweep; the lock goes with this process, however it ends. Raises UsageError."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
            raise UsageError(
                f"expected a folder without a running sweep, got {folder}, held by process {holder}; wait for it"
            ) from None
        except OSError as error:
            why = f"{folder}, whose file system has none: {error.strerror}"
            raise UsageError(f"expected a folder that can be locked, got {why}; give --out elsewhere") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def recorded(folder: Path) -> dict[str, str]:
    """Cells that have a record, by key, and the newest one's status."""
    if not (folder / FILE_NAME).is_file():
        return {}
    return {str(each.raw[SWEEP]): each.status for each in read_records(folder)[0] if SWEEP in each.raw}


def missing(grid: Grid, folder: Path, *, retry_failed: bool = False) -> list[GridCell]:
    """The cells that are still to be measured, in the grid's order."""
    held = recorded(folder)
    return [cell for cell in grid.cells if cell.key not in held or (retry_failed and held[cell.key] != "ok")]


def take_up(grid: Grid, folder: Path) -> None:
    """Record what the tasks of an array have measured, each in a folder of its own."""
    held = recorded(folder)
    for cell in grid.cells:
        found = None if cell.key in held else _record(cell, folder / cell.key)
        if found is not None:
            append(folder, replace(found, raw={**found.raw, SWEEP: cell.key}))


def _launch(cell: GridCell, out: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a cell's ranks; they end when this process does, however that ends."""
    words = to_argv(replace(cell.options, out=out))
    options = ("--preload", ",".join(PRELOAD), "--standalone", "--nproc-per-node", str(cell.ranks))
    command = agent_command(*options, "-m", "launch.measure", cell.case, *words)
    parent = os.getpid()
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            env=worker_environment(os.environ, cell.ranks),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: die_with(parent),
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a launch: gently, and after a while by force. What it started goes with it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure(cell: GridCell, folder: Path, deadline_s: float) -> Record:
    """Measure one cell in a launch of its own -> its record, or one with the reason why there is none."""
    place = folder / RUNNING / cell.key
    shutil.rmtree(place, ignore_errors=True)  # of a sweep that was killed
    place.mkdir(parents=True)
    log = place / "log"
    process = _launch(cell, place, log)
    late = False
    try:
        process.wait(deadline_s)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        if process.poll() is None:
            _end(process)
    found = _record(cell, place)
    if found is None or late:
        why = f"{LATE} of {deadline_s:g} s" if late else _why(process.returncode, log)
        full = not late and process.returncode == OUT_OF_MEMORY
        found = Record(case=cell.kind, cell=cell.cell, status="oom" if full else "failed", error=why)
    if found.status != "ok":
        (folder / LOGS).mkdir(exist_ok=True)
        shutil.copyfile(log, folder / LOGS / f"{cell.key}.log")
    shutil.rmtree(place, ignore_errors=True)
    return replace(found, raw={**found.raw, SWEEP: cell.key})


def _record(cell: GridCell, place: Path) -> Record | None:
    if not (place / FILE_NAME).is_file():
        return None
    wanted = key_of(cell.cell)
    own = [each for each in read_records(place)[0] if each.case == cell.kind and key_of(each.cell) == wanted]
    return own[-1] if own else None


def _why(code: int, log: Path) -> str:
    """The launch's own words about its end, which it writes first, or its exit code."""
    lines = log.read_text(errors="replace").splitlines()
    said = [line.removeprefix("ringmark: ") for line in lines if line.startswith("ringmark: ")]
    said = [line for line in said if not line.endswith(f"OMP_NUM_THREADS {line.rpartition(' ')[2]}")]
    words = f": {said[-1] if len(said) == 1 else ' '.join(said)}" if said else ""
    return f"the ranks ended with exit code {shell_code(code)} before the cell was measured{words}"[:MOST_WORDS]


def measure_all(cells: Sequence[GridCell], folder: Path, deadline_s: float, done: int) -> None:
    """Measure cells one after another and record each, with a bar and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("cells"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # No thread of its own (a fork would leave it behind), and an estimate over the whole sweep.
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, speed_estimate_period=1e9)
    with bar:
        task = bar.add_task("", total=done + len(cells), completed=done)
        bar.refresh()
        for cell in cells:
            bar.update(task, description=_name(cell), refresh=True)
            record = measure(cell, folder, deadline_s)
            append(folder, record)
            if record.status != "ok":
                bar.console.print(f"{_name(cell)}: {record.status}: {record.error}", markup=False, highlight=False)
            bar.update(task, advance=1, refresh=True)


def _name(cell: GridCell) -> str:
    plain = [str(value) for value in cell.cell.values() if value not in (None, False, "off")]
    return " ".join([cell.case, *plain])[:100]


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def write_array(grid: Grid, path: Path, out: Path) -> int:
    """Write one list of options per cell, each with a folder of its own, and say how to submit them."""
    import json

    cases, ranks = {cell.case for cell in grid.cells}, {cell.ranks for cell in grid.cells}
    if len(ranks) > 1:
        got = ", ".join(map(str, sorted(ranks)))
        raise UsageError(f"expected cells of one number of ranks for an array, got {got}; write a grid for each")
    rows = [json.dumps(to_argv(replace(cell.options, out=out / cell.key))) for cell in grid.cells]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"ringmark submit --site NAME --nproc-per-node {ranks.pop()} --array {path} -- bench {cases.pop()}")
    print(f"When it is done, the same sweep with --out {out} takes up its records, and measures what is missing.")
    return 0


def sweep(argv: Sequence[str]) -> int:
    """`ringmark sweep GRID.toml` -> 0 if every cell is measured, 1 if one failed, 130 after a signal."""
    from launch.commands import show_report

    asks_for_help = any(word in ("-h", "--help") for word in argv)
    if not asks_for_help and (not argv or argv[0].startswith("-")):
        raise UsageError("expected a grid file first, got none; ringmark sweep grid.toml --out runs/sweep")
    rest = argv if asks_for_help else argv[1:]
    options = parse(SweepOptions, rest, prog="ringmark sweep GRID.toml", description=HELP)
    grid = load(Path(argv[0]))
    if options.array is not None:
        return write_array(grid, options.array, options.out)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with locked(options.out):
            take_up(grid, options.out)
            cells = missing(grid, options.out, retry_failed=options.retry_failed)
            done = len(grid.cells) - len(cells)
            print(f"{len(grid.cells)} cells, {done} of them measured before", flush=True)
            measure_all(cells, options.out, grid.deadline_s, done)
            shutil.rmtree(options.out / RUNNING, ignore_errors=True)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the missing cells", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    show_report(options.out)
    held = recorded(options.out)
    return int(any(held[cell.key] != "ok" for cell in grid.cells))
