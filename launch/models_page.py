"""The page on all models: `python -m launch.models_page RECORDS_DIR > docs/models.md`.

It joins what the models say of themselves, the records of `ringmark bench models`, and docs/models.toml.
"""

import sys
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launch.guard import refuse_foreign_packages

NOTES = Path(__file__).resolve().parent.parent / "docs" / "models.toml"
COSTS = ("model", "input", "parameters", "GFLOP", "batch", "samples/s", "peak memory", "reference", "architecture")
WIDTH = 108
"""Characters of a command in one line."""
HEAD = """# Models

Every model that `ringmark train --model NAME` knows by name, by task; torchvision's other classifiers, timm's
(`--model timm:NAME`, where it is installed) and your own files (`--model path/to/file.py:factory`) train the same way.

- **input, parameters**: of one sample, and of the model at the size and the classes that it was made for; tests compare
  them with other implementations' counts or with arithmetic (tests/reference_counts.py).
- **GFLOP**: 1e9 floating-point operations of one sample in a training step, forward and backward: matrix products,
  convolutions and attention, 2 for a multiply-add. n/a: not measured, or not countable.
- **batch, samples/s, peak memory**: samples per rank in a step; samples of all ranks per second; memory of the rank
  that needs most, beyond what it needs without a model.
- **reference**: what others report for the architecture, and where; it is no claim of this project.

This page is written by `python -m launch.models_page RECORDS_DIR > docs/models.md`; what is not measured or counted is
in docs/models.toml.
"""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What docs/models.toml says of a model; empty where it says nothing."""

    reference: str = ""
    """Accuracy that others report, with its data."""
    origin: str = ""
    """Where that is from."""
    verified: str = ""
    """What was checked here."""
    learned: str = ""
    """What a run here reached."""
    command: str = ""
    """The command of that run."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Everything known of one model."""

    name: str
    task: str
    shape: tuple[int, ...]
    parameters: int | None
    source: str
    notes: Notes
    record: Any = None
    """bench.record.Record of its measurement, ok or not; None: not measured."""


def read_notes(path: Path, known: Sequence[str]) -> dict[str, Notes]:
    """Model -> its notes. Raises ValueError for a model or a field that does not exist."""
    names = {field.name for field in fields(Notes)}
    tables: dict[str, dict[str, str]] = tomllib.loads(path.read_text(encoding="utf-8"))
    for model, table in tables.items():
        if model not in known:
            raise ValueError(f"expected names of models in {path.name}, got {model!r}; see `ringmark list models`")
        strangers = sorted(table.keys() - names)
        if strangers or not all(isinstance(value, str) for value in table.values()):
            raise ValueError(f"expected text for {', '.join(sorted(names))} in [{model}], got {strangers or table}")
    return {model: Notes(**table) for model, table in tables.items()}


def _published(name: str) -> tuple[Notes, int]:
    """torchvision's accuracy and number of parameters of one of its classifiers, with its first weights."""
    from torchvision.models import get_model_weights

    member = next(iter(get_model_weights(name)))
    accuracy = member.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    notes = Notes(reference=f"{accuracy:.2f} % ImageNet", origin=f"torchvision's metadata, {member.name}")
    return notes, int(member.meta["num_params"])


def entries(records: Mapping[str, Any], path: Path = NOTES) -> list[Entry]:
    """All of ringmark's own models and torchvision's best-known, by task and name. `records`: by model."""
    from bench.cases.models import FAMILIES
    from models import zoo

    names = [*zoo.own_names(), *FAMILIES]
    notes = read_notes(path, names)
    found = []
    for name in names:
        spec = zoo.find(name)
        own, parameters = Notes(), spec.parameters
        if name in FAMILIES:
            own, parameters = _published(name)
        found.append(
            Entry(
                name=name,
                task=spec.task,
                shape=spec.shape,
                parameters=parameters,
                source=spec.source,
                notes=notes.get(name, own),
                record=records.get(name),
            )
        )
    return sorted(found, key=lambda entry: (entry.task, entry.name))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns)), *(_line(row) for row in rows)]


def _costs(entry: Entry) -> list[str]:
    from bench.report import escaped
    from bench.summaries.models import gflop, input_text, memory_text, samples_per_s
    from bench.text import NA, count, number, value_text

    record, notes = entry.record, entry.notes
    measured, shape, parameters = [NA] * 4, entry.shape, entry.parameters
    if record is not None and record.status == "ok":
        shape, parameters = record.raw["shape"], record.raw["parameters"]
        batch = value_text(record.cell.get("batch_per_rank"))
        measured = [number(gflop(record)), batch, number(samples_per_s(record)), memory_text(record)]
    elif record is not None:
        measured = [NA, f"{record.status}: {escaped(value_text(record.error))}", NA, NA]
    origin = f" ({notes.origin})" if notes.origin else ""
    reference = escaped(f"{notes.reference}{origin}")
    return [
        f"`{entry.name}`",
        input_text(shape),
        count(parameters),
        *measured,
        reference,
        escaped(entry.source),
    ]


def _checks(entry: Entry) -> list[str]:
    """What was checked of a model, and the command that anybody can repeat it by."""
    from bench.report import escaped

    notes = entry.notes
    said = "; ".join(escaped(each) for each in (notes.verified, notes.learned) if each)
    lines = [f"- `{entry.name}`: {said}"]
    if not notes.command:
        return lines
    words = textwrap.wrap(notes.command, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [*lines, "", "      " + " \\\n          ".join(words), ""]


def _machine(records: Sequence[Any]) -> str:
    """Where and how the numbers were measured; every setting that the records differ in is listed."""
    from bench.report import escaped
    from bench.text import value_text

    if not records:
        return "Nothing was measured yet."

    def each(part: str, name: str) -> str:
        return ", ".join(dict.fromkeys(value_text(getattr(record, part).get(name)) for record in records))

    cpu = each("environment", "cpu") if each("environment", "device") == "cpu" else each("environment", "device")
    settings = ", ".join(
        f"{label} {each('cell', name)}"
        for label, name in (("SyncBN", "sync_bn"), ("amp", "amp"), ("compile", "compile"), ("image size", "image_size"))
    )
    machine = f"{cpu}, {each('environment', 'cores')} cores, torch {each('environment', 'torch')}"
    ok = sum(record.status == "ok" for record in records)
    return escaped(f"{ok} of {len(records)} measured: {machine}; {each('cell', 'ranks')} ranks, {settings}.")


def page(found: Sequence[Entry]) -> str:
    """The whole page, Markdown."""
    records = [entry.record for entry in found if entry.record is not None]
    lines = [HEAD, _machine(records)]
    for task in dict.fromkeys(entry.task for entry in found):
        members = [entry for entry in found if entry.task == task]
        checked = [entry for entry in members if entry.notes.verified or entry.notes.learned]
        lines += ["", f"## {task.capitalize()}", "", *_table(COSTS, [_costs(entry) for entry in members])]
        if checked:
            lines += ["", "Checked here:", "", *(line for entry in checked for line in _checks(entry))]
    return "\n".join(lines) + "\n"


def measured(folder: Path) -> dict[str, Any]:
    """Model -> its newest record, an ok one if there is any. Raises ValueError if the folder holds no records."""
    from bench.record import read
    from bench.summary import newest

    records = [record for record in read(folder)[0] if record.case == "models"]
    found: dict[str, Any] = {}
    for record in sorted(newest(records), key=lambda record: (record.status == "ok", record.time)):
        found[record.cell["model"]] = record
    return found


def main(argv: Sequence[str]) -> int:
    """Print the page; returns the exit code."""
    from launch.argv import fail

    if len(argv) != 1:
        return fail("expected one folder with records; python -m launch.models_page runs/bench > docs/models.md")
    try:
        print(page(entries(measured(Path(argv[0])))), end="")
    except ValueError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    refuse_foreign_packages()
    sys.exit(main(sys.argv[1:]))
