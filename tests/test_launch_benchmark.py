"""What a benchmark's launcher makes of the records that its ranks left."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from bench.record import Record, append
from launch.benchmark import _any_failed_since


def leave(folder: Path, model: str, status: Literal["ok", "oom", "failed"]) -> None:
    cell: dict[str, Any] = {"model": model}
    append(folder, Record(case="models", cell=cell, status=status))


def test_a_cell_has_failed_if_its_latest_record_of_this_run_says_so(tmp_path: Path) -> None:
    options = SimpleNamespace(out=tmp_path)
    assert not _any_failed_since(options, "models", 0)
    leave(tmp_path, "of an earlier run", "failed")
    leave(tmp_path, "mended", "failed")
    leave(tmp_path, "mended", "ok")
    assert _any_failed_since(options, "models", 0)
    assert not _any_failed_since(options, "models", 1)
    leave(tmp_path, "too large", "oom")
    assert _any_failed_since(options, "models", 1)
    assert not _any_failed_since(options, "scaling", 0)
