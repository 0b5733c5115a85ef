"""The page on all models: a row for each, what was measured where it was, and notes of models that exist only."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.cases.models import FAMILIES, ModelCell
from bench.record import Record, append
from launch.models_page import NOTES, Entry, Notes, entries, measured, page, read_notes
from models import zoo

ROOT = Path(__file__).resolve().parent.parent


def record(model: str, samples: int, **changes: object) -> Record:
    raw = {"shape": [3, 8, 8], "parameters": 1234, "training_flop_per_sample": 5e9, "peak_memory_bytes": [2**20, 2**21]}
    raw["blocks"] = [{"round": 0, "samples": samples, "wall_s": [1.0, 2.0], "step_s": [[1.0], [2.0]]}]
    cell = asdict(ModelCell(model=model, task="classification", ranks=2, batch_per_rank=4))
    environment = {"cpu": "EPYC", "device": "cpu", "cores": 4, "torch": "2.15"}
    fields = {"case": "models", "cell": cell, "status": "ok", "raw": raw, "environment": environment} | changes
    return Record(**fields)  # type: ignore[arg-type]


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> the others, of the first table that has it."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            found.setdefault(cells[0].strip("`"), cells[1:])
    return found


def test_the_page_in_the_tree_has_a_row_for_every_model() -> None:
    there = rows((ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    missing = {*zoo.own_names(), *FAMILIES} - there.keys()
    assert not missing, f"write docs/models.md anew, see launch/models_page.py: {sorted(missing)}"


def test_every_model_has_its_row_with_what_is_known() -> None:
    records = {
        "lenet5": record("lenet5", 40),
        "mlp": record("mlp", 0, status="failed", error="RuntimeError: a|b", raw={}),
    }
    text = page(entries(records))
    found = rows(text)
    assert found.keys() == {*zoo.own_names(), *FAMILIES}
    assert found["lenet5"][:6] == ["3x8x8", "1,234", "5.00", "4", "20.0", "2.00 MiB"]
    assert "LeCun" in found["lenet5"][-1]
    assert found["mlp"][:6] == ["1x28x28", "203,530", "n/a", r"failed: RuntimeError: a\|b", "n/a", "n/a"]
    assert found["resnet18"][:6] == ["3x224x224", "11,689,512", *["n/a"] * 4]
    assert found["resnet18"][6] == r"69.76 % ImageNet (torchvision's metadata, IMAGENET1K\_V1)"
    assert "1 of 2 measured: EPYC, 4 cores, torch 2.15; 2 ranks, SyncBN yes" in text
    assert text.index("## Classification") < text.index("`lenet5`") < text.index("## Regression")


def test_what_was_checked_stands_below_the_table_with_its_command() -> None:
    notes = Notes(verified="outputs equal", learned="98 % in 3 epochs", command="ringmark train --model a")
    shown = [
        Entry(name=name, task="regression", shape=(1,), parameters=2, source="", notes=each)
        for name, each in (("a", notes), ("b", Notes(reference="90 %", origin="a paper")))
    ]
    text = page(shown)
    assert "- `a`: outputs equal; 98 % in 3 epochs\n\n      ringmark train --model a\n" in text
    assert "- `b`" not in text
    assert "90 % (a paper)" in text
    assert "Nothing was measured yet." in text


def test_notes_are_of_models_and_fields_that_exist(tmp_path: Path) -> None:
    known = [*zoo.own_names(), *FAMILIES]
    assert read_notes(NOTES, known)["dla"] == Notes(
        reference="95.47 % CIFAR-10", origin="README of kuangliu/pytorch-cifar"
    )
    for text, message in (
        ("[lenet6]\nreference = 'x'", "got 'lenet6'"),
        ("[lenet5]\nacuracy = 'x'", r"in \[lenet5\], got \['acuracy'\]"),
        ("[lenet5]\nreference = 3", r"in \[lenet5\]"),
    ):
        (tmp_path / "notes.toml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_notes(tmp_path / "notes.toml", known)


def test_the_newest_good_record_counts(tmp_path: Path) -> None:
    larger = asdict(ModelCell(model="lenet5", task="classification", ranks=2, batch_per_rank=512))
    failed = record("lenet5", 0, cell=larger, status="oom", error="no", raw={}, time="2026-01-03T00:00:00+00:00")
    for each in (
        record("lenet5", 40, time="2026-01-01T00:00:00+00:00"),
        record("lenet5", 80, time="2026-01-02T00:00:00+00:00"),
        failed,
        Record(case="fit", cell={"model": "mlp"}, status="ok"),
    ):
        append(tmp_path, each)
    found = measured(tmp_path)
    assert found.keys() == {"lenet5"}
    assert found["lenet5"].raw["blocks"][0]["samples"] == 80


def test_the_command_wants_a_folder_with_records(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.models_page", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected a folder with records.jsonl" in done.stderr
