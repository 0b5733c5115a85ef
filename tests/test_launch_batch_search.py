"""`ringmark batch-size`: which sizes are tried, and that the largest that fits is found with ranks that run out."""

import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cases import scaling
from bench.record import read
from launch.argv import parse
from launch.batch_search import largest
from tests.launches import ROOT, environment, left_behind

COMMAND = "import sys; sys.argv[:1] = ['ringmark', 'batch-size']; from launch.cli import console; sys.exit(console())"
GREEDY = """
import os, time, torch
from torch import nn

class Net(nn.Linear):
    def forward(self, x):
        rank = int(os.environ["RANK"])
        if rank == 1 and len(x) > {most}:
            {action}
        return super().forward(x.flatten(1))

def net(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)
"""
GIB = 1 << 30


@pytest.mark.parametrize(
    ("truth", "first", "most", "found", "tried"),
    [
        (100, 16, 1000, 96, [16, 32, 64, 128, 96]),
        (95, 16, 1000, 64, [16, 32, 64, 128, 96]),
        (11, 16, 1000, 8, [16, 8, 12]),
        (13, 16, 1000, 12, [16, 8, 12]),
        (1, 16, 1000, 1, [16, 8, 4, 2, 1]),
        (0, 16, 1000, None, [16, 8, 4, 2, 1]),
        (0, 1, 1, None, [1]),
        (9, 1, 1000, 8, [1, 2, 4, 8, 16, 12]),
        (1000, 16, 64, 64, [16, 32, 64]),
        (1000, 16, 100, 96, [16, 32, 64, 96]),
        (4, 5, 1000, 3, [5, 2, 3]),
    ],
)
def test_sizes_are_doubled_or_halved_and_then_halfway(
    truth: int, first: int, most: int, found: int | None, tried: list[int]
) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= truth

    assert largest(fits, first, most) == found
    assert asked == tried


def search(folder: Path, most: int, action: str, *options: str) -> tuple[int, str, str, list[tuple[int, str]]]:
    """A search with two ranks, of which the second fails with more samples -> its code, words and records."""
    (folder / "greedy.py").write_text(GREEDY.format(most=most, action=action))
    words = ["--model", f"{folder}/greedy.py:net", "--ranks", "2", "--device", "cpu", "--out", str(folder / "out")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMMAND, *words, *options],
        cwd=folder, env=environment(folder, PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (8 * GIB, 8 * GIB)),
    )  # fmt: skip
    records = read(folder / "out")[0]
    assert left_behind(folder) == []
    return done.returncode, done.stdout, done.stderr, [(each.cell["batch_per_rank"], each.status) for each in records]


def test_the_largest_batch_is_found_although_one_rank_runs_out_of_memory_while_the_other_waits(folder: Path) -> None:
    code, out, err, records = search(folder, 5, f"torch.empty({16 * GIB}, dtype=torch.uint8)", "--first", "4")
    assert code == 0, err
    assert records == [(4, "ok"), (8, "oom"), (6, "oom")]
    assert "4 samples per rank fit, 8 on 2 ranks together" in out
    *_, following = out.splitlines()
    words = shlex.split(following)
    assert words[:4] == ["next", "ringmark", "bench", "scaling"]
    again = parse(scaling.Options, words[4:], prog="next", description="")
    assert (again.ranks, again.batch_size, again.scaling, again.device) == ((2,), 4, "weak", "cpu")
    assert "DefaultCPUAllocator: can't allocate" in out


def test_a_rank_that_never_comes_back_is_one_that_does_not_fit(folder: Path) -> None:
    code, out, err, records = search(folder, 2, "time.sleep(1000)", "--first", "3", "--deadline-s", "40", "--most", "5")
    assert code == 0, err
    assert records == [(3, "failed"), (1, "ok")]
    assert "not done after its deadline of 40 s" in out


def test_an_error_that_has_nothing_to_do_with_memory_ends_the_search(folder: Path) -> None:
    code, _, err, records = search(folder, 0, "raise ValueError('broken')", "--first", "2")
    assert records == [(2, "failed")]
    assert code == 2
    assert err.count("\n") == 1
    assert "got: ValueError: broken" in err
