"""`ringmark explain` says all that would happen, and does nothing."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.argv import UsageError
from launch.explain import explain
from tests.test_launch_sbatch import stand_in


def worker(words: Sequence[str], ranks: int) -> tuple[str, ...]:
    raise UsageError("expected run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    stand_in(tmp_path / "bin", monkeypatch, "sbatch", "cat > /dev/null; echo 'sbatch: Job 3 to start at noon' >&2")
    stand_in(tmp_path / "bin", monkeypatch, "sinfo", "echo 'gpu*|infinite'")
    (tmp_path / "s.py").write_text("")
    return tmp_path


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[str]]:
    """What is printed, by its titles."""
    assert explain([*words, "--", "run", "s.py"], worker) == 0
    blocks = capsys.readouterr().out.split("\n# ")
    # The script has comments of its own; its block goes on to the next title.
    return {block.splitlines()[0].removeprefix("# "): block.rstrip().splitlines()[1:] for block in blocks}


def test_everything_is_told_and_nothing_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    told = explained(capsys, "--site", "gpu-example", "--nodes", "2", "--nproc-per-node", "3", "--env", "A=b c,d")

    assert sorted(here.rglob("*")) == before
    assert told["sbatch"][0].startswith("sbatch --parsable --job-name=ringmark-s --nodes=2 ")
    assert told["sbatch"][-1].endswith("/job.sbatch")
    assert all(line.endswith(" \\") for line in told["sbatch"][:-1])
    srun = " ".join(told["srun, on the first node"])
    assert "srun --kill-on-bad-exit=1 --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=32" in srun
    assert "boot.py node --spec" in srun.replace("\\     ", "")
    rows = [line.split() for line in told["ranks"]]
    assert [row[:3] for row in rows[1:]] == [[str(r), str(r // 3), str(r % 3)] for r in range(6)]
    assert rows[5][3:8] == ["10", "of", "32", "GPU", "1"]
    assert "RANK=4 LOCAL_RANK=1 GROUP_RANK=1 WORLD_SIZE=6 LOCAL_WORLD_SIZE=3" in told["ranks"][5]
    assert told["variables"] == ["A='b c,d'"]
    assert told["start"] == ["to start at noon"]


def test_srun_starts_every_rank_in_its_own_mode(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = explained(capsys, "--site", "gpu-example", "--mode", "srun")

    assert "--ntasks=4 --distribution=arbitrary --overcommit --cpu-bind=none" in " ".join(
        told["srun, on the first node"]
    )


def test_what_only_slurm_decides_is_not_made_up(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = explained(capsys, "--site", "gpu-example", "--nodes", "2", "--gpus", "5")
    assert told["ranks"] == ["5 ranks, one for each GPU: SLURM decides how many each of the 2 nodes gives"]

    stand_in(here / "bin", pytest.MonkeyPatch(), "sbatch", "echo 'allocation failure: no' >&2; exit 1")
    told = explained(capsys, "--site", "local", "--nproc-per-node", "40")
    assert told["start"] == ["unknown: sbatch refused: allocation failure: no"]
    assert told["ranks"][-1] == "... and 8 more alike"
    assert "its node's default" in told["ranks"][1]


def test_an_image_is_part_of_the_step(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        site: " ".join(line.removesuffix("\\").strip() for line in explained(capsys, "--site", path)[title])
        for site, path in {"apptainer": "a100-apptainer", "pyxis": "enroot-pyxis"}.items()
        for title in ["srun, on the first node"]
    }

    assert " apptainer exec --nv --bind " in lines["apptainer"]
    assert " --bind /scratch /project/images/torch.sif python3 " in lines["apptainer"]
    assert "/launch/boot.py node --spec " in lines["apptainer"]
    assert " --container-image=/project/images/torch.sqsh " in lines["pyxis"]
    assert ",/raid:/data " in lines["pyxis"]
    assert " --container-env=PYTHONPATH,PYTHONSAFEPATH,NCCL_IB_HCA python3 " in lines["pyxis"]
    assert os.getcwd() in lines["apptainer"]
