"""A sweep that is killed at random moments and started again: `python -m tests.sweep_storm --cells 24 --kills 20`.

It must end with exactly the cells that an undisturbed one has, none of them twice, and nothing of it may be left.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from bench.record import read
from launch.grid import load
from launch.grid_run import recorded
from tests.launches import environment, processes_of, temporary_folder
from tests.sweep_cells import write_grid

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "import sys; from launch.grid_run import sweep; sys.exit(sweep(sys.argv[1:]))"


def start(folder: Path, grid: Path) -> subprocess.Popen[bytes]:
    """A sweep that runs."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, str(grid), "--out", str(folder / "out")],
            cwd=folder, env=environment(folder, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)), stdout=log, stderr=log,
        )  # fmt: skip


def storm(folder: Path, grid: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill a sweep so many times, then let it end -> (its exit code, kills that met it running).

    First as soon as a cell is recorded, then at random moments within twice the time that took.
    """
    generator, met, most_s = random.Random(seed), 0, 0.0
    for number in range(kills):
        process, started = start(folder, grid), time.monotonic()
        moment_s = generator.uniform(0, most_s) if most_s else 1e9
        while process.poll() is None and time.monotonic() - started < moment_s:
            if not most_s and recorded(folder / "out"):
                most_s = 2 * (time.monotonic() - started)
                break
            time.sleep(0.01)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        met += 1
        print(f"kill {number + 1}: {len(recorded(folder / 'out'))} cells recorded", flush=True)
    return start(folder, grid).wait(), met


def check(folder: Path, grid: Path) -> list[str]:
    """What is wrong with a finished sweep's folder; empty if nothing is."""
    wanted = {cell.key for cell in load(grid).cells}
    records, complaints = read(folder / "out")
    found = Counter(str(record.raw["sweep"]) for record in records)
    wrong = [f"missing: {key}" for key in wanted - set(found)] + [f"unknown: {key}" for key in set(found) - wanted]
    wrong += [f"{count} times: {key}" for key, count in found.items() if count > 1] + complaints
    wrong += [f"{record.status}: {record.error}" for record in records if record.status != "ok"]
    deadline = time.monotonic() + 20
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return wrong + [f"process {pid} is left" for pid in left]


def main() -> int:
    """Storm, check, tell; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = temporary_folder()
    grid = write_grid(folder, ["mlp"], options.cells)
    started = time.monotonic()
    code, met = storm(folder, grid, options.kills, options.seed)
    wrong = check(folder, grid)
    print("\n".join(wrong) or f"all {len(load(grid).cells)} cells once, after {met} kills, in "
          f"{time.monotonic() - started:.0f} s; exit code {code}")  # fmt: skip
    return int(bool(wrong) or code != 0)


if __name__ == "__main__":
    sys.exit(main())
