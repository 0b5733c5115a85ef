"""`ringmark bench CASE`: start the ranks, make sure that every cell ends as a record, and report."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

from bench.cell import key_of
from bench.record import FILE_NAME, Record, append, read
from ddp import discover
from launch.argv import UsageError, parse, to_argv
from launch.torchrun import Launch, run


def parse_case(argv: Sequence[str], *, prog: str) -> tuple[ModuleType, Any]:
    """The benchmark named first, and its options. Raises UsageError, Mistake or ModelMistake for a person's mistake."""
    known = discover.names("bench.cases")
    if not argv or argv[0].startswith("-"):
        raise UsageError(
            f"expected the name of a benchmark ({', '.join(known)}), got none; try {prog} {known[-1]} --help"
        )
    case = discover.find("bench.cases", argv[0], kind="benchmark")
    description = (case.__doc__ or "").split("\n\n")[0]
    return case, parse(case.Options, argv[1:], prog=f"{prog} {argv[0]}", description=description)


def wanted_cells(case: ModuleType, options: Any) -> list[Any]:
    """The cells of a benchmark, or those that `--only` names. Raises UsageError if it names others."""
    cells: list[Any] = case.cells(options)
    if not options.only:
        return cells
    keys = options.only.split(",")
    unknown = set(keys) - {cell.key for cell in cells}
    if unknown:
        raise UsageError(
            f"expected keys of this benchmark's cells in --only, got {', '.join(sorted(unknown))}; leave it out"
        )
    return [cell for cell in cells if cell.key in keys]


def _recorded(options: Any, kind: str) -> int:
    return len(_since(options, kind, 0))


def _since(options: Any, kind: str, before: int) -> list[Record]:
    if not (options.out / FILE_NAME).is_file():
        return []
    return [record for record in read(options.out)[0] if record.case == kind][before:]


def _keys_since(options: Any, kind: str, before: int) -> set[str]:
    return {key_of(record.cell) for record in _since(options, kind, before)}


def _any_failed_since(options: Any, kind: str, before: int) -> bool:
    """Whether a cell's latest record says that it was not measured."""
    latest = {key_of(record.cell): record.status for record in _since(options, kind, before)}
    return any(status != "ok" for status in latest.values())


def _launch(case_name: str, options: Any, world_size: int) -> int:
    launch = Launch(nproc_per_node=world_size, module="launch.measure", argv=(case_name, *to_argv(options)))
    print(launch.shown(), flush=True)
    return run(launch)


def run_case(case_name: str, case: ModuleType, options: Any) -> int:
    """Measure all cells in one launch; if it fails, those without a record again, each alone.

    Returns 0 if every cell was measured, else the last launch's exit code, or 1 if that is 0. A cell that fails leaves
    a record that says why, written by the rank that failed or, if it could not, here.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    kind = case_name.replace("-", "_")
    cells = wanted_cells(case, options)
    before = _recorded(options, kind)
    code = _launch(case_name, options, case.world_size(options))
    if code in (2, 130):
        return code
    failed = code
    for cell in cells:
        if code == 0 or cell.key in _keys_since(options, kind, before):
            continue
        alone = _launch(case_name, replace(options, only=cell.key), case.world_size(options))
        if alone == 130:
            return alone
        if cell.key not in _keys_since(options, kind, before):
            append(
                options.out,
                Record(
                    case=kind,
                    cell=asdict(cell),
                    status="failed",
                    error=f"the ranks ended with exit code {alone} before the cell was measured",
                ),
            )
        failed = alone or failed
    return failed or int(_any_failed_since(options, kind, before))
