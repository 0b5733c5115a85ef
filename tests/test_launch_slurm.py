"""Jobs on a real SLURM cluster of two nodes: what ringmark submits is what the ranks get, and what is told of them."""

import json
import os
from pathlib import Path

import pytest

from bench.record import read
from launch.verdict import read as read_verdict
from tests.slurm_cluster import Cluster
from tests.slurm_jobs import ringmark, submit

pytestmark = pytest.mark.xdist_group("slurm")
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = str(ROOT / "tests" / "launched.py")
TRAIN = ("--model", "convnet", "--data", "digits", "--lr", "0.2", "--sync-bn", "--epochs", "3", "--device", "cpu")
MAP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES")
HOSTILE = (
    'it\'s "quoted" $(touch pwned) `touch pwned` ${HOME} \\ !',
    "two\nlines\r\n#SBATCH --nodes=9\ttab",
    "",
    "--no",
)


def test_ranks_devices_and_cpus_are_the_same_whoever_starts_the_ranks(slurm_cluster: Cluster, tmp_path: Path) -> None:
    """Two GPUs of one node and one of the other: three ranks, by launcher, by srun and by torchrun itself."""
    maps, environments = [], []
    for mode in ("agent", "srun", "torchrun"):
        words = ["--mode", mode, "--nodes", "2", "--gpus", "3", "--env", "NCCL_IB_HCA=mlx5_0,mlx5_1"]
        run = submit(slurm_cluster, tmp_path, *words, "--", "run", SCRIPT, "show", *HOSTILE, SBATCH_TIMELIMIT="7")
        job = run.wait()
        assert (job["JobState"], job["ExitCode"], job["TimeLimit"]) == ("COMPLETED", "0:0", "00:05:00"), run.output
        facts = run.facts()
        assert [fact["rank"] for fact in facts] == [0, 1, 2], run.output
        assert all(fact["argv"][2:] == list(HOSTILE) for fact in facts)
        assert all(fact["env"]["NCCL_IB_HCA"] == "mlx5_0,mlx5_1" for fact in facts)
        assert all("PYTHONSAFEPATH" not in fact["env"] for fact in facts)
        maps.append([[*(fact["env"][name] for name in MAP), fact["cpus"], fact["threads"]] for fact in facts])
        environments.append([set(fact["env"]) for fact in facts])
        assert run.verdict().cause == "done"
    assert maps[0] == maps[1] == maps[2]
    assert [entry[:7] for entry in maps[0]] == [
        ["0", "0", "3", "2", "0", "n1", "0,1"],
        ["1", "1", "3", "2", "0", "n1", "0,1"],
        ["2", "0", "3", "1", "1", "n2", "0"],
    ]
    if len(os.sched_getaffinity(0)) > 1:
        assert not set(maps[0][0][7]) & set(maps[0][1][7])  # the two of one node share no CPU
    assert not list(tmp_path.rglob("pwned"))


def test_the_rank_that_failed_first_is_named_across_nodes_and_its_code_is_the_jobs(
    slurm_cluster: Cluster, tmp_path: Path
) -> None:
    words = ["--nodes", "2", "--nproc-per-node", "1"]
    again = submit(slurm_cluster, tmp_path, *words, "--requeue", "--", "run", SCRIPT, "tie")  # it would happen again
    killed = submit(slurm_cluster, tmp_path, *words, "--", "run", SCRIPT, "kill")
    for run, code, cause in ((again, 42, "exit"), (killed, 137, "signal")):
        job = run.wait()
        verdict = run.verdict()
        assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", f"{code}:0", "0"), run.output
        assert (verdict.ranks, verdict.code, verdict.cause, verdict.host) == ((1,), code, cause, "n2"), run.output
        assert "rank 1 (n2, local rank 0) ended first" in run.output
        assert verdict.log is not None
        assert Path(verdict.log).name == "rank-1-n2.log"
        assert not (run.folder / "attempts" / "0" / "state" / "hub.json").exists()


def test_srun_mode_names_the_culprit_too(slurm_cluster: Cluster, tmp_path: Path) -> None:
    words = ["--mode", "srun", "--nodes", "2", "--nproc-per-node", "2", "--", "run", SCRIPT]
    run = submit(slurm_cluster, tmp_path, *words, "raise")
    job, verdict = run.wait(), run.verdict()
    assert (job["ExitCode"], verdict.ranks, verdict.host) == ("1:0", (3,), "n2"), run.output
    assert "ValueError: the last rank is broken" in run.output


def test_ranks_of_all_nodes_start_again_after_one_was_killed(slurm_cluster: Cluster, tmp_path: Path) -> None:
    words = ["--nodes", "2", "--nproc-per-node", "2", "--max-restarts", "2", "--", "run", SCRIPT, "die-once"]
    run = submit(slurm_cluster, tmp_path, *words)
    job = run.wait()
    assert job["JobState"] == "COMPLETED", run.output
    sums = [json.loads(line.partition("] ")[2]) for line in run.output.splitlines() if '"sum"' in line]
    assert sorted((each["rank"], each["sum"], each["attempt"]) for each in sums) == [(k, 6, 1) for k in range(4)]
    told = [line for line in run.output.splitlines() if line.startswith("ringmark: ") and "forked" not in line]
    assert "rank 3 (n2, local rank 1) ended first" in told[0], run.output  # one verdict, not one of each node
    assert told[-1] == "ringmark: restart 1: all ranks start again"
    assert sum("rank 3" in line for line in told) == 1
    failed = read_verdict(run.folder / "attempts" / "0" / "verdict-restart-1.json")
    assert (failed.ranks, failed.host) == ((3,), "n2")
    assert run.verdict().cause == "done"


def test_a_hang_on_one_node_is_named_and_ends_all(slurm_cluster: Cluster, tmp_path: Path) -> None:
    words = ["--nodes", "2", "--nproc-per-node", "2", "--", "run", SCRIPT, "stop", "5"]
    run = submit(slurm_cluster, tmp_path, *words)
    job, verdict = run.wait(), run.verdict()
    assert (job["ExitCode"], verdict.cause, verdict.ranks, verdict.host) == ("6:0", "hang", (3,), "n2"), run.output


def test_a_job_on_two_nodes_trains_what_the_same_ranks_train_on_one(slurm_cluster: Cluster, tmp_path: Path) -> None:
    def epochs(folder: Path) -> list[dict[str, float]]:
        (record,) = read(folder)[0]
        assert record.cell["ranks"] == 2
        return [{key: value for key, value in epoch.items() if key[-2:] != "_s"} for epoch in record.raw["epochs"]]

    words = ["--nodes", "2", "--nproc-per-node", "1", "--", "train", *TRAIN, "--out", str(tmp_path / "nodes")]
    run = submit(slurm_cluster, tmp_path, *words)
    here = ringmark(
        slurm_cluster, "train", "--nproc-per-node", "2", *TRAIN, "--out", str(tmp_path / "here"), cwd=tmp_path
    )
    assert here.returncode == 0, here.stderr
    job = run.wait()
    assert job["JobState"] == "COMPLETED", run.output
    assert read(tmp_path / "nodes")[0][0].environment["nodes"] == 2
    assert epochs(tmp_path / "nodes") == epochs(tmp_path / "here")
    assert epochs(tmp_path / "nodes")[-1]["test_correct"] > 0.8 * 360
    shown = ringmark(slurm_cluster, "status", str(run.folder))
    assert "done" in shown.stdout.lower()
    logs = ringmark(slurm_cluster, "logs", "--rank", "0", str(run.folder))
    assert "test accuracy" in logs.stdout
