"""Grids of a sweep: a TOML file to the cells that it describes, each with the options of a launch of its own.

case = "scaling"            # a benchmark of `ringmark list cases`
deadline_s = 600            # after which a cell's launch is ended

[options]                   # the same in all cells
block_s = 2.0

[grid]                      # every combination of these
model = ["resnet18-cifar", "vit-b-16"]
ranks = [1, 2]
amp = ["off", "bf16"]

[[exclude]]                 # combinations with all of these values are left out
model = "vit-b-16"
amp = "off"

[[include]]                 # one more combination, whatever is excluded
model = "mlp"
"""

import itertools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.cell import key_of
from ddp import discover
from ddp.mistake import require
from launch.argv import UsageError, parse

KEYS = ("case", "deadline_s", "options", "grid", "include", "exclude")
MOST = 10_000
"""Combinations in a grid."""
DEADLINE_S = 1800.0
NOT_MEASURED = ("out", "only", "timeout_s")
"""Options that do not change what is measured."""


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One cell of a sweep, and how to measure it alone."""

    case: str
    """The benchmark, as it is named on the command line."""
    options: Any
    """Its options with `only` set to this cell; `out` is still to be set."""
    ranks: int
    """Processes of its launch."""
    cell: dict[str, Any]
    """As its record has it."""
    how: dict[str, Any]
    """The options that decide how well it is measured, such as block_s; part of the key, since they change numbers."""

    @property
    def kind(self) -> str:
        """The case as records name it."""
        return self.case.replace("-", "_")

    @property
    def key(self) -> str:
        """What stands for it among all cells of all sweeps."""
        return key_of({"case": self.kind, "cell": self.cell, "how": self.how})


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A sweep, read and checked."""

    cells: tuple[GridCell, ...]
    deadline_s: float


def load(path: Path) -> Grid:
    """Read a grid file. Raises UsageError or ValueError for what is wrong in it."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"expected a grid file, got {path}: {error.strerror}; check its path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"expected TOML in {path}, got {error}; correct it") from None
    unknown = sorted(set(table) - set(KEYS))
    require(not unknown, f"{path} with keys among {', '.join(KEYS)}", ", ".join(unknown), "correct or remove it")
    deadline_s = table.get("deadline_s", DEADLINE_S)
    number = isinstance(deadline_s, int | float) and not isinstance(deadline_s, bool) and deadline_s > 0
    require(number, "deadline_s as seconds above 0", deadline_s, "such as 600")
    name = table.get("case", "scaling")
    require(isinstance(name, str), "case as a word", name, "see ringmark list cases")
    case = discover.find("bench.cases", name, kind="benchmark")
    common = _table(table.get("options", {}), "[options]")
    cells: dict[str, GridCell] = {}
    ways: dict[str, dict[str, Any]] = {}
    for chosen in _combinations(table):
        added = 0
        for cell in _cells(name, case, _options(name, case, {**common, **chosen})):
            way = ways.setdefault(key_of(cell.cell), cell.how)
            require(way == cell.how, "each cell measured in one way", f"{way} and {cell.how}", "use a sweep for each")
            held = cells.get(cell.key)
            added += held is None
            if held is None or cell.ranks < held.ranks:  # the smallest launch that has the cell
                cells[cell.key] = cell
        require(added > 0, "combinations with cells of their own", f"{chosen}, which changes none", "leave it out")
    require(bool(cells), "a grid with cells", "none", "exclude less")
    return Grid(cells=tuple(cells.values()), deadline_s=float(deadline_s))


def _combinations(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the grid but the excluded ones, and those that are included."""
    axes = {key: value if isinstance(value, list) else [value] for key, value in _table(table.get("grid", {})).items()}
    size = 1
    for key, values in axes.items():
        require(bool(values), f"values of {key} in [grid]", "none", "name one or leave it out")
        size *= len(values)
    require(size <= MOST, f"at most {MOST} combinations in [grid]", size, "use several sweeps")
    found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
    for pattern in _tables(table, "exclude"):
        foreign = sorted(set(pattern) - set(axes))
        require(not foreign and bool(pattern), "keys of [grid] in [[exclude]]", ", ".join(foreign) or "none", "fix it")
        found = [each for each in found if any(each[key] != value for key, value in pattern.items())]
    return found + [extra for extra in _tables(table, "include") if extra not in found]


def _tables(table: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = table.get(name, [])
    good = isinstance(value, list) and all(isinstance(each, dict) for each in value)
    require(good, f"[[{name}]] with a table", value, f"write [[{name}]] above the keys")
    found: list[dict[str, Any]] = value
    return found


def _table(value: Any, name: str = "[grid]") -> dict[str, Any]:
    require(isinstance(value, dict), f"a table {name}", value, "write key = value below it")
    found: dict[str, Any] = value
    return found


def _options(name: str, case: ModuleType, values: Mapping[str, Any]) -> Any:
    """The benchmark's options from names and values, checked as on the command line."""
    taken = sorted({"out", "only"} & set(values))
    require(not taken, "a grid without out and only", ", ".join(taken), "the sweep sets them")
    words = [word for key, value in values.items() for word in _flag(key, value)]
    return parse(case.Options, words, prog=f"ringmark sweep, {name} of {json.dumps(dict(values))}", description="")


def _flag(key: str, value: Any) -> list[str]:
    flag = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, list):
        return [flag, ",".join(map(str, value))]
    good = isinstance(value, str | int | float)
    require(good, f"text, a number, true or a list of them for {key}", value, "correct it")
    return [flag, str(value)]


def _cells(name: str, case: ModuleType, options: Any) -> list[GridCell]:
    """The cells of one combination, each to be launched alone."""
    how_fields = _how(case, options)
    found = []
    for cell in case.cells(options):
        alone = replace(options, only=cell.key)
        plain = json.loads(json.dumps(asdict(cell), default=str))  # as it will be read from its record
        found.append(GridCell(case=name, options=alone, ranks=case.world_size(options), cell=plain, how=how_fields))
    return found


def _how(case: ModuleType, options: Any) -> dict[str, Any]:
    """Options that all benchmarks have, but for those that change nothing."""
    from bench.options import BenchOptions

    shared = set(BenchOptions.__dataclass_fields__) - set(NOT_MEASURED)
    return {key: value for key, value in asdict(options).items() if key in shared}
