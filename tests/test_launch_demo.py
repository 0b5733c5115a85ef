"""The demo may be run again: what it left is removed, and nothing else."""

from pathlib import Path

from launch.demo import clear


def test_a_second_demo_removes_what_the_first_left_and_nothing_else(tmp_path: Path) -> None:
    for name in ("checkpoints/step-000000012/shared.pt", "tensorboard/events", "records.jsonl", "model.pt", "mine.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
