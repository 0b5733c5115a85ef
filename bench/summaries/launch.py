"""Launches: how long until the ranks run their first line, have met, and have made a step, by who launches them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.record import Record
from bench.section import Fact, Section, Table
from bench.stats import Interval, ratio_interval
from bench.text import NA, number, value_text

OURS = "ringmark run"
STAGES = ("first line", "process group", "wrapped model", "first step")
COLUMNS = ("launcher", "ranks", *(f"{stage} s" for stage in STAGES), "end s")
RATIOS = ("ringmark run / this, first line", "first step", "launches", "status")
NOTE = (
    "Seconds since the launch was asked for until the last rank was so far, medians of launches; a bare import of "
    "torch has one process, and nothing to meet. Ratios of the same round, geometric means with 95 % intervals. "
    "Launches: those that succeeded; of a launcher that then failed no times are told, since the slowest is missing."
)


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """One launcher's starts."""

    record: Record
    starts: tuple[Mapping[str, Any], ...]

    def times_s(self, stage: str) -> tuple[float, ...]:
        """When the last rank was so far, launch by launch; empty if it never is."""
        return tuple(float(start["ranks_s"][stage]) for start in self.starts if stage in start["ranks_s"])


def ratio(ours: Launcher | None, other: Launcher, stage: str) -> Interval | None:
    """Our time over another's until a stage, round by round; None if either does not have it."""
    if ours is None or ours is other:
        return None
    pairs = list(zip(ours.times_s(stage), other.times_s(stage), strict=False))
    return ratio_interval([mine / its for mine, its in pairs])


def summarise(records: Sequence[Record]) -> Section:
    """A table of launchers by stage, our own launcher's stages, and one line for the verdict."""
    found = [Launcher(record=each, starts=tuple(each.raw["starts"]) if each.status == "ok" else ()) for each in records]
    facts, tables = [], []
    for ranks in dict.fromkeys(each.record.cell.get("ranks") for each in found if _name(each) == OURS):
        ours = next(each for each in found if _name(each) == OURS and each.record.cell.get("ranks") == ranks)
        others = [each for each in found if each.record.cell.get("ranks") in (ranks, 1)]
        against = [(_name(each), ratio(ours, each, "first line")) for each in others if each is not ours]
        details = tuple(f"{_interval(interval)} of {name}" for name, interval in against if interval is not None)
        start_s = ours.times_s("first step")
        if start_s:
            facts.append(Fact(label="Start", value=f"{number(median(start_s))} s to the first step", details=details))
            tables.append(_own_stages(ours))
        tables.insert(0, _table(others, ours))
    return Section(facts=tuple(facts), tables=tuple(tables))


def numbers(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each record: median seconds until the last rank was so far, and until the launcher ended."""
    found: list[dict[str, Any]] = []
    for record in records:
        starts = record.raw["starts"] if record.status == "ok" else []
        launcher = Launcher(record=record, starts=tuple(starts))
        times = {f"{stage.replace(' ', '_')}_s": launcher.times_s(stage) for stage in STAGES}
        times["end_s"] = tuple(float(start["end_s"]) for start in starts)
        found.append({name: median(values) for name, values in times.items() if values})
    return found


def _name(launcher: Launcher) -> str:
    return value_text(launcher.record.cell.get("launcher"))


def _table(launchers: Sequence[Launcher], ours: Launcher) -> Table:
    rows = []
    for each in launchers:
        ends = [float(start["end_s"]) for start in each.starts]
        times = [_median(each.times_s(stage)) for stage in STAGES]
        ratios = [_interval(ratio(ours, each, stage)) for stage in ("first line", "first step")]
        status = "ok" if each.record.status == "ok" else f"{each.record.status}: {value_text(each.record.error)}"
        ranks = value_text(each.record.cell.get("ranks"))
        launches = str(len(each.record.raw.get("starts") or ()))
        rows.append((_name(each), ranks, *times, _median(ends), *ratios, launches, status))
    return Table(title="Starting a launch", columns=(*COLUMNS, *RATIOS), rows=tuple(rows), note=NOTE)


def _own_stages(ours: Launcher) -> Table:
    names = dict.fromkeys(name for start in ours.starts for name in start["launcher_s"])
    rows = tuple((name, _median([float(start["launcher_s"][name]) for start in ours.starts])) for name in names)
    return Table(title="Stages of ringmark's own launcher", columns=("stage", "reached after s"), rows=rows)


def _median(values: Sequence[float]) -> str:
    return number(median(values)) if values else NA


def _interval(interval: Interval | None) -> str:
    return NA if interval is None else f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
