"""`ringmark sweep`: grids are read and refused, cells measured alone, failures kept, kills survived."""

import fcntl
import json
from pathlib import Path

import pytest

from bench.record import Record, append, read
from launch.argv import UsageError
from launch.grid import load
from launch.grid_run import LOCK, locked, measure, missing, recorded, sweep, take_up
from tests import sweep_storm
from tests.launches import left_behind
from tests.sweep_cells import write_grid

GRID = """
[options]
scaling = "weak"

[grid]
model = ["mlp", "lenet5"]
ranks = [1, 2]
amp = ["off", "bf16"]
batch_size = 8

[[exclude]]
model = "lenet5"
amp = "bf16"

[[include]]
model = "convnet"
ranks = [1, 4]
channels_last = true
"""


def grid_of(folder: Path, text: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def test_a_grid_is_every_combination_but_the_excluded_and_what_is_included(tmp_path: Path) -> None:
    cells = load(grid_of(tmp_path, GRID)).cells
    names = [(cell.cell["model"], cell.cell["amp"], cell.cell["strategy"], cell.cell["ranks"]) for cell in cells]
    three = [("single", 1), ("ddp", 1), ("ddp", 2)]
    expected = {(model, amp, *each) for model, amp in (("mlp", "off"), ("mlp", "bf16"), ("lenet5", "off"))
                for each in three}  # fmt: skip
    expected |= {("convnet", "off", "single", 1), ("convnet", "off", "ddp", 1), ("convnet", "off", "ddp", 4)}
    assert len(names) == 12  # the single process of 1 and 2 ranks is one cell
    assert set(names) == expected
    assert len({cell.key for cell in cells}) == 12
    assert [cell.ranks for cell in cells if cell.cell["model"] == "mlp"] == [1, 1, 1, 1, 2, 2]


def test_a_key_tells_how_well_a_cell_is_measured_and_not_where(tmp_path: Path) -> None:
    def keys(options: str) -> list[str]:
        return [cell.key for cell in load(grid_of(tmp_path, f'[options]\n{options}\n[grid]\nmodel = "mlp"')).cells]

    assert keys("block_s = 1.0") == keys("block_s = 1.0\ntimeout_s = 33.0")
    assert set(keys("block_s = 1.0")).isdisjoint(keys("block_s = 2.0"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[grid", "expected TOML"),
        ("[gird]\nmodel = 'mlp'", "with keys among case, deadline_s"),
        ("case = 'scalign'", "did you mean scaling"),
        ("case = 3", "case as a word"),
        ("deadline_s = 0", "deadline_s as seconds above 0"),
        ("deadline_s = true", "deadline_s as seconds above 0"),
        ("[grid]\nmodel = []", "values of model"),
        ("[grid]\nmodel = 'mpl'", "did you mean mlp"),
        ("[grid]\nmodle = 'mlp'", "--modle"),
        ("[grid]\nbatch_size = 'x'", "batch-size"),
        ("[grid]\nonly = 'x'", "without out and only"),
        ("[grid]\nmodel = {a = 1}", "text, a number, true or a list"),
        ("[grid]\nmodel = 'mlp'\n[[exclude]]\namp = 'off'", r"keys of \[grid\] in \[\[exclude\]\], got amp"),
        ("[grid]\nmodel = 'mlp'\n[[exclude]]\nmodel = 'mlp'", "a grid with cells"),
        ("[grid]\nmodel = 'mlp'\nblock_s = [1.0, 2.0]", "each cell measured in one way"),
        ("case = 'collectives'\n[grid]\nmodel = ['mlp', 'lenet5']", "combinations with cells of their own"),
        ("case = 'train-step'\n[grid]\nmodel = 'mlp'\nwarmup_cap_steps = [50, 60]", "which changes none"),
        ("include = 3", r"\[\[include\]\] with a table"),
        (f"[grid]\na = {list(range(101))}\nb = {list(range(100))}", "at most 10000 combinations"),
    ],
)
def test_a_mistake_in_a_grid_is_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises((UsageError, ValueError), match=expected):
        load(grid_of(tmp_path, text))


@pytest.mark.parametrize("argv", [[], ["--out", "x"], ["/nowhere/grid.toml"]])
def test_a_sweep_without_a_grid_is_refused(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="expected a grid file"):
        sweep(argv)


def test_two_sweeps_of_one_folder_are_refused_and_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as file:
        file.write("123\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="held by process 123"), locked(tmp_path):
            pass
    with locked(tmp_path), pytest.raises(UsageError, match="without a running sweep"), locked(tmp_path):
        pass


FAILS = """
import os, time
from torch import nn

class Net(nn.Linear):
    def forward(self, x):
        if self.training:
            {action}
        return super().forward(x.flatten(1))

def net(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)
"""


def test_failed_cells_stay_with_their_reason_and_are_measured_again_only_if_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(folder))
    (folder / "dies.py").write_text(FAILS.format(action="os.kill(os.getpid(), 9)"))
    grid = write_grid(folder, [str(folder / "dies.py:net")], 1)
    out = folder / "out"
    assert sweep([str(grid), "--out", str(out)]) == 1
    records = read(out)[0]
    assert [record.status for record in records] == ["failed"]
    assert all("exit code 137" in str(record.error) for record in records)
    assert all("SIGKILL" in str(record.error) for record in records)  # the launcher's own words
    assert [path.stem for path in (out / "logs").iterdir()] == [load(grid).cells[0].key]
    before = (out / "records.jsonl").read_bytes()
    assert sweep([str(grid), "--out", str(out)]) == 1
    assert (out / "records.jsonl").read_bytes() == before
    assert len(missing(load(grid), out)) == 0
    assert len(missing(load(grid), out, retry_failed=True)) == 1
    assert left_behind(folder) == []


def test_a_cell_is_ended_at_its_deadline_with_all_of_its_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(folder))
    (folder / "hangs.py").write_text(FAILS.format(action="time.sleep(600)"))
    cell = load(write_grid(folder, [str(folder / "hangs.py:net")], 1)).cells[0]
    (folder / "out").mkdir()
    record = measure(cell, folder / "out", 6.0)
    assert (record.status, record.cell) == ("failed", cell.cell)
    assert record.error == "not done after its deadline of 6 s"
    assert record.raw == {"sweep": cell.key}
    assert left_behind(folder) == []


def test_a_sweep_that_is_killed_again_and_again_measures_every_cell_once(folder: Path) -> None:
    grid = write_grid(folder, ["mlp"], 3)
    code, met = sweep_storm.storm(folder, grid, kills=3, seed=1)
    assert code == 0, (folder / "log").read_text()
    assert met >= 2
    assert sweep_storm.check(folder, grid) == []
    assert len(recorded(folder / "out")) == 3
    assert not (folder / "out" / "running").exists()
    assert {"records.jsonl", "report.html", "report.md", LOCK} <= {path.name for path in (folder / "out").iterdir()}


def test_an_array_has_a_line_of_options_for_each_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, ["mlp", "lenet5"], 2)
    array = tmp_path / "cells.jsonl"
    assert sweep([str(grid), "--out", str(tmp_path / "out"), "--array", str(array)]) == 0
    rows = [json.loads(line) for line in array.read_text().splitlines()]
    assert len(rows) == 4
    assert len({row[row.index("--only") + 1] for row in rows}) == 4
    assert len({row[row.index("--out") + 1] for row in rows}) == 4
    assert "submit" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    cells = load(grid).cells
    for cell in cells:  # as the tasks of the array do
        append(tmp_path / "out" / cell.key, Record(case=cell.kind, cell=cell.cell, status="ok", raw={"blocks": []}))
    for _ in range(2):
        take_up(load(grid), tmp_path / "out")
    assert missing(load(grid), tmp_path / "out") == []
    assert len(read(tmp_path / "out")[0]) == len(cells)
    grid.write_text(grid.read_text().replace("ranks = 1", "").replace("[grid]", "[grid]\nranks = [1, 2]"))
    with pytest.raises(UsageError, match="one number of ranks"):
        sweep([str(grid), "--array", str(array)])
