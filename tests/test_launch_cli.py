"""The command: mistakes end with one line and exit code 2, before torch is imported and before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from ddp.config import TrainConfig
from launch.guard import check_not_shadowed
from launch.torchrun import worker_environment

ROOT = Path(__file__).resolve().parent.parent
IN_PROCESS = (
    "import sys; from launch.cli import console; code = console(); "
    "print('torch imported' if 'torch' in sys.modules else 'torch-free'); sys.exit(code)"
)


def command(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `ringmark ARGV` and say whether it imported torch."""
    return subprocess.run(
        [sys.executable, "-c", IN_PROCESS, *argv], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


MISTAKES = {
    "trian": "expected a command (train, run, bench, sweep, compare, batch-size, ",
    "train --model resnet18-cfar": "did you mean resnet18-cifar",
    "train --data mnits": "got 'mnits'; did you mean mnist or digits?",
    "train --strategy dpp": "expected a strategy (auto, ddp, ddp-spawn, dp, fsdp2, single), got 'dpp'",
    "train --amp fp8": "Expected one of ('off', 'bf16', 'fp16')",
    "train --data imagefolder": "expected --data-dir with --data imagefolder, got none",
    "train --data imagefolder --data-dir /nowhere": "expected an existing folder in --data-dir",
    "train --nproc-per-node 3": "a global batch that 3 ranks can share equally, got --global-batch-size 128; use 126",
    "train --nproc-per-node 3 --global-batch-size 2": "use 3, or --batch-size",
    "train --nproc-per-node 2000 --data digits --batch-size 1": "for each of the 2000 ranks, got 1437; use fewer ranks",
    "train --nproc-per-node 0": "expected --nproc-per-node of at least 1, got 0",
    "bench": "expected the name of a benchmark (checkpoint, collectives, ",
    "bench scalign": "did you mean scaling",
    "bench scaling --ranks 1,3": "a --batch-size that 3 ranks can share equally in strong scaling, got 16",
    "bench scaling --model nope": "expected a model",
    "bench loader --data-dir /nowhere": "expected an existing folder in --data-dir",
    "report /nowhere": "expected a folder with records.jsonl, got /nowhere",
    "report": "expected one folder with records",
    "list modles": "expected one of models, data, tasks, cases, strategies, sites, got modles",
    "compare --channels-last --tf32 --out /dev/null": "expected to read or write /dev/null, got: File exists",
    "submit --site local": "expected train, bench or run after --, got nothing",
    "submit --site nowhere -- train": "nowhere",
    "submit -- train": "ringmark: expected --site as well (see ringmark submit --help)",
    "judge --nope 3": "ringmark: expected --generator and --judge-weights as well (see",
    "judge": "expected --generator and --judge-weights as well",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2_and_without_torch(line: str) -> None:
    done = command(*line.split())
    assert MISTAKES[line] in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2
    assert done.stdout == "torch-free\n"


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["list", "models"], ["list", "data"], ["list", "cases"], ["list", "sites"]]
)
def test_help_and_lists_need_no_torch(argv: list[str]) -> None:
    done = command(*argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("torch-free\n")


@pytest.mark.parametrize("argv", [["train"], ["bench", "scaling"], ["submit"], ["demo"]])
def test_every_command_explains_its_flags(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch", *argv, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: ringmark" in done.stdout


def test_an_empty_image_folder_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
    done = command("train", "--data", "imagefolder", "--data-dir", str(tmp_path))
    assert "expected images in" in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("kind", ["package", "empty folder", "module"])
def test_a_foreign_models_in_the_way_is_named(tmp_path: Path, kind: str) -> None:
    if kind == "module":
        (tmp_path / "models.py").write_text("")
    else:
        (tmp_path / "models").mkdir()
    if kind == "package":
        (tmp_path / "models" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", "--model", "nope"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    if kind == "empty folder":  # Python prefers our package to it, so the run gets as far as reading its flags
        assert "expected a model" in done.stderr
    else:
        assert f"expected ringmark's own package models, got {tmp_path}" in done.stderr


def test_our_own_packages_are_accepted() -> None:
    check_not_shadowed()


def test_workers_share_the_cores_and_find_our_packages_first() -> None:
    environment = worker_environment({"PYTHONPATH": "/theirs", "OMP_NUM_THREADS": "7"}, 2)
    assert environment["PYTHONPATH"].split(":") == [str(ROOT), "/theirs"]
    assert environment["PYTHONSAFEPATH"] == "1"
    assert environment["OMP_NUM_THREADS"] == "7"  # what the user chose stays
    assert int(worker_environment({}, 10_000)["OMP_NUM_THREADS"]) == 1


def test_the_global_batch_is_the_ranks_together() -> None:
    assert TrainConfig(batch_size=8).global_batch(3) == 24
    assert TrainConfig(global_batch_size=24).global_batch(3) == 24
    assert TrainConfig().global_batch(4) == 128
