"""Grids of tiny cells for the tests of sweeps."""

from pathlib import Path

TINY = """
case = "loop-cost"
deadline_s = 100

[options]
block_s = 0.01
rounds = 2
warmup_steps = 3
device = "cpu"
ranks = 1

[grid]
model = [{models}]
batch_size = [{batches}]
"""


def write_grid(folder: Path, models: list[str], batches: int) -> Path:
    """A grid of one cell for each model and each of so many batch sizes."""
    path = folder / "grid.toml"
    names = ", ".join(f'"{model}"' for model in models)
    path.write_text(TINY.format(models=names, batches=", ".join(map(str, range(2, 2 + batches)))))
    return path
