"""Jobs on a real SLURM cluster of two nodes: what ringmark submits is what the ranks get."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.record import read
from launch.submit import SubmitOptions, submit
from tests.slurm_cluster import Cluster, missing_reason, running_cluster
from tests.slurm_worker import FAILURE, FAILURE_CODE

pytestmark = pytest.mark.xdist_group("slurm")
ROOT = Path(__file__).resolve().parent.parent
JOB_TIMEOUT_S = 120
HOSTILE = (
    'it\'s "quoted" $(touch pwned) `touch pwned` ${HOME} \\ !',
    "two\nlines\r\n#SBATCH --nodes=9\ttab",
    "ünïcödé 火 \u2028 \x1b[31m",
    "",
    "--no",  # An ambiguous prefix of torchrun's own --node-rank and --no-python.
    "--nnodes=7",
    "-h",
    "--",
    "; exit 0 #",
    "*",
)


@pytest.fixture(scope="module")
def slurm_cluster() -> Iterator[Cluster]:
    reason = missing_reason()
    if reason:
        # A skip that nobody reads is how a test dies: where it must run, it fails.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    return tmp_path / "run 100% it's #1 %j ü"


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    path = tmp_path / "two nodes.toml"
    path.write_text(
        'partition = "debug"\ntime = "00:05:00"\ncpus_per_task = 2\ngpus_per_node = 2\nconstraint = "fast&cpu"\n'
        'setup = ["test -z \\"$NOBODY_SET_THIS\\"", "export SITE_SETUP=\'ran on the first node\'"]\n'
        'sbatch_options = ["--nice=1"]\n'
    )
    return path


def job_id_in(output: str) -> str:
    """The id that `submit` printed."""
    return output.split(":")[0].split()[1]


@pytest.mark.timeout(180)
def test_two_nodes_train_together_and_get_the_arguments_unchanged(
    slurm_cluster: Cluster,
    site_file: Path,
    hostile_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:

    worker = ("tests.slurm_worker", *HOSTILE)
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("SBATCH_TIMELIMIT", "7")  # It would beat the script's own time.
    monkeypatch.setenv("SLURM_NODEID", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    options = SubmitOptions(site=str(site_file), nodes=2, nproc_per_node=1, name="pair", run_dir=hostile_folder)

    assert submit(options, worker) == 0
    job_id = job_id_in(capfd.readouterr().out)
    job = slurm_cluster.wait_for(job_id, JOB_TIMEOUT_S)

    output = (hostile_folder / f"pair-{job_id}.out").read_text(encoding="utf-8")
    print(output)
    assert (job["JobState"], job["ExitCode"], job["TimeLimit"]) == ("COMPLETED", "0:0", "00:05:00"), output
    ranks = sorted((json.loads(line) for line in output.splitlines() if line.startswith("{")), key=lambda r: r["rank"])
    assert [(rank["rank"], rank["world"], rank["sum"], rank["node"]) for rank in ranks] == [
        (0, 2, 3, "n1"),
        (1, 2, 3, "n2"),
    ]
    for rank in ranks:
        assert tuple(rank["argv"]) == HOSTILE
        assert rank["cwd"] == str(tmp_path)
        assert rank["env"]["CUDA_VISIBLE_DEVICES"] == "0"
        assert rank["env"]["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
        assert rank["env"]["PYTHONSAFEPATH"] == "1"
        assert rank["env"]["SITE_SETUP"] == "ran on the first node"
    assert not list(tmp_path.rglob("pwned"))
    assert {path.name for path in hostile_folder.iterdir()} == {f"pair-{job_id}.out", f"job-{job_id}.sbatch"}


@pytest.mark.timeout(180)
def test_a_rank_that_fails_on_one_node_fails_the_whole_job(
    slurm_cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])

    assert submit(SubmitOptions(site="local", nodes=2, run_dir=tmp_path), ("tests.slurm_worker", FAILURE)) == 0
    job_id = job_id_in(capfd.readouterr().out)
    job = slurm_cluster.wait_for(job_id, JOB_TIMEOUT_S)

    output = (tmp_path / f"ringmark-slurm_worker-{job_id}.out").read_text()
    assert job["JobState"] == "FAILED", output
    # srun returns the highest code of its tasks: 1 of the failing torchrun, or 143 of the one that it had to end.
    assert job["ExitCode"] in ("1:0", "143:0"), output
    assert f"exitcode  : {FAILURE_CODE} " in output, f"no report of the rank at fault: {output}"


def test_what_sbatch_refuses_is_one_sentence_and_leaves_no_script(
    slurm_cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])

    site = tmp_path / "elsewhere.toml"
    site.write_text('partition = "nowhere"')

    assert submit(SubmitOptions(site=str(site), run_dir=tmp_path / "run"), ("tests.slurm_worker",)) == 1

    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ringmark submit: sbatch refused the job: invalid partition specified: nowhere; ")
    assert captured.err.count("\n") == 1
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.timeout(240)
def test_a_job_on_two_nodes_trains_what_the_same_ranks_train_on_one(slurm_cluster: Cluster, tmp_path: Path) -> None:
    environment = {**slurm_cluster.environment, "OMP_NUM_THREADS": "1"}
    flags = ["--model", "convnet", "--data", "digits", "--lr", "0.2", "--sync-bn", "--epochs", "3", "--device", "cpu"]

    def ringmark(*argv: str) -> str:
        command = [sys.executable, "-m", "launch", *argv]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def epochs(folder: Path) -> list[dict[str, float]]:
        (record,) = read(folder)[0]
        assert record.cell["ranks"] == 2
        return [{key: value for key, value in epoch.items() if key[-2:] != "_s"} for epoch in record.raw["epochs"]]

    submitted = ["submit", "--site", "slurm/sites/local.toml", "--nodes", "2", "--run-dir", str(tmp_path / "job")]
    job_id = job_id_in(ringmark(*submitted, "--", "train", *flags, "--out", str(tmp_path / "nodes")))
    ringmark("train", "--nproc-per-node", "2", *flags, "--out", str(tmp_path / "here"))
    job = slurm_cluster.wait_for(job_id, JOB_TIMEOUT_S)

    output = (tmp_path / "job" / f"ringmark-train-{job_id}.out").read_text()
    assert job["JobState"] == "COMPLETED", output
    assert read(tmp_path / "nodes")[0][0].environment["nodes"] == 2
    assert epochs(tmp_path / "nodes") == epochs(tmp_path / "here")
    assert epochs(tmp_path / "nodes")[-1]["test_correct"] > 0.8 * 360
