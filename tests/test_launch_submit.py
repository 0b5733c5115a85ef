"""From a command line to a run folder and jobs: what is checked before, and what a real cluster makes of it."""

import json
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import precheck, run_folder, slurm_text, spec
from launch.argv import UsageError
from launch.plan import plan
from launch.sites import Site
from launch.submit import submit
from tests import batch_recorder
from tests.slurm_cluster import Cluster

pytestmark = pytest.mark.xdist_group("slurm")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a script and a site `here.toml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.py").write_text("print(1)\n")
    python = json.dumps(batch_recorder.install(tmp_path, ROOT))
    (tmp_path / "here.toml").write_text(f"python = {python}\ngpus_per_node = 2\n[environment]\nA = 'site'\nB = 'b,c'\n")
    return tmp_path


def worker(words: Sequence[str], ranks: int) -> tuple[str, ...]:
    if words[:1] != ["train"]:
        raise UsageError("expected train")
    return ("launch.train", f"--ranks={ranks}", *words[1:])


def plan_of(*options: str, inner: Sequence[str] = ("run", "s.py")) -> spec.Spec:
    return plan(["--site", "here.toml", *options, "--", *inner], worker).specs[0]


def test_a_script_and_its_arguments_become_a_spec(here: Path) -> None:
    words = ["--nodes", "2", "--mode", "srun", "--follow", "--hang-timeout", "60", "--max-restarts", "2"]
    one = plan_of(*words, "--env", "A=1,2", "--env=C=x=y", inner=["run", "s.py", "--", "-h", "--nodes", "9"])

    assert (one.script, one.is_module, one.resumable) == (str(here / "s.py"), False, False)
    assert one.arguments == ("--", "-h", "--nodes", "9")
    assert dict(one.environment) == {"A": "1,2", "B": "b,c", "C": "x=y"}
    assert (one.nodes, one.nproc_per_node, one.mode, one.go_on) == (2, 2, "srun", "follow")
    assert (one.hang_timeout_s, one.max_restarts, one.stop_margin_s) == (60.0, 2, 120.0)
    assert one.work_dir == str(here)
    assert one.run_dir.startswith(str(here / "runs" / "slurm" / "ringmark-s-"))
    assert not (here / "runs").exists()


def test_a_module_and_training_become_specs_too(here: Path) -> None:
    one = plan_of("--resumable", inner=["run", "-m", "pkg.tool", "-m"])
    assert (one.script, one.is_module, one.resumable, one.arguments) == ("pkg.tool", True, True, ("-m",))

    one = plan_of("--nodes", "2", "--requeue", inner=["train", "--resume", "auto"])
    assert (one.script, one.is_module, one.resumable) == ("launch.train", True, True)
    assert one.arguments == ("--ranks=4", "--resume", "auto")


def test_uneven_nodes_are_asked_for_by_the_total(here: Path) -> None:
    planned = plan(["--site", "here.toml", "--nodes", "2", "--gpus", "3", "--", "train"], worker)

    assert planned.specs[0].nproc_per_node is None
    assert planned.specs[0].arguments == ("--ranks=3",)
    assert "--gpus=3" in planned.sbatch_options


def test_a_sweep_has_a_spec_for_each_line(here: Path) -> None:
    (here / "sweep.txt").write_text('["--lr", "0.1"]\n\n["--lr", "it\'s $(x)\\n"]\n')
    planned = plan(["--site", "here.toml", "--array", "sweep.txt", "--", "run", "s.py", "x"], worker)

    assert [one.arguments for one in planned.specs] == [("x", "--lr", "0.1"), ("x", "--lr", "it's $(x)\n")]
    assert [Path(one.run_dir).name for one in planned.specs] == ["task-0", "task-1"]
    (here / "sweep.json").write_text('[["a"], []]')
    planned = plan(["--site", "here.toml", "--array", "sweep.json", "--", "run", "s.py"], worker)
    assert [one.arguments for one in planned.specs] == [("a",), ()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-- run", "expected run SCRIPT ARGS or run -m MODULE ARGS, got nothing"),
        ("-- run --nodes 2 s.py", "got --nodes; options of ours go before --"),
        ("-- other", "expected train"),
        ("--env A -- run s.py", "expected --env NAME=VALUE, got 'A'"),
        ("--env A-B=1 -- run s.py", "a variable that ringmark and SLURM do not set, got 'A-B'"),
        ("--env RANK=1 -- run s.py", "got 'RANK'"),
        ("--env HF_TOKEN=x -- run s.py", "add --keep-env HF_TOKEN"),
        ("--requeue --follow -- run s.py", "expected one of --requeue and --follow, got both"),
        ("--gpus 2 --nproc-per-node 1 -- run s.py", "expected one of --gpus and --nproc-per-node"),
        ("--array 2 --chain 2 -- run s.py", "expected one of --array and --chain"),
        ("--array 2 --follow -- run s.py", "expected --requeue with --array, got --follow"),
        ("--at-once 2 -- run s.py", "expected --at-once with --array"),
        ("--chain 0 -- run s.py", "expected --chain from 1 to 100, got 0"),
        ("--array 0 -- run s.py", "expected --array of 1 to 10000 tasks, got 0"),
        ("--array nowhere.txt -- run s.py", "expected a number of tasks or a file in --array"),
        ("--array s.py -- run s.py", "expected JSON in --array"),
        ("--array bad.txt -- run s.py", "expected lists of strings in --array, got [1] as number 1"),
        ("--requeue -- train", "expected train --out DIR --resume auto in a run that goes on"),
        ("--hang-timeout 0 -- run s.py", "expected --hang-timeout above 0 s"),
        ("--name= -- run s.py", "expected --name of up to 64 letters"),
    ],
)
def test_a_command_that_cannot_be_right_is_refused(here: Path, words: str, message: str) -> None:
    (here / "bad.txt").write_text('["a"]\n[1]\n')
    with pytest.raises((UsageError, ValueError)) as caught:
        plan(["--site", "here.toml", *words.split()], worker)
    assert message in str(caught.value)


def test_a_typo_is_found_before_anybody_waits_for_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # nothing asks SLURM before these are seen
    (here / "broken.py").write_text("import os\nif True print(1)\n")
    (here / "nul.py").write_bytes(b"a = 1\0\n")
    (here / "ours.toml").write_text("")
    (here / "gone.toml").write_text(f'python = "{here}/missing"')
    cases = {
        ("ours.toml", "run nowhere.py"): "expected a script that can be read, got ",
        ("ours.toml", "run broken.py"): "broken.py' line 2: ",
        ("ours.toml", "run nul.py"): "expected a script that is Python",
        ("ours.toml", "run -m no_such_package.tool"): "no 'no_such_package'; install it",
        ("ours.toml", "run -m json.no_such_tool"): "no 'json.no_such_tool'",
        ("gone.toml", "run s.py"): "expected python as a program that can be run",
    }
    for (site, words), message in cases.items():
        with pytest.raises(ValueError, match="expected ") as caught:
            submit(["--site", site, "--", *words.split()], worker)
        assert message in str(caught.value)
    assert not (here / "runs").exists()


def test_a_module_is_found_without_being_imported(here: Path) -> None:
    (here / "pkg").mkdir()
    (here / "pkg" / "__init__.py").write_text("raise RuntimeError('imported')")
    (here / "pkg" / "tool.py").write_text("raise RuntimeError('imported')")
    one = spec.Spec(name="x", script="pkg.tool", is_module=True, python=sys.executable, work_dir=str(here))

    precheck.check_program(one)
    assert "pkg" not in sys.modules


def test_a_dry_run_prints_the_script_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    assert submit(["--site", "here.toml", "--dry-run", "--", "run", "s.py"], worker) == 0

    assert capsys.readouterr().out.startswith("#!/bin/bash\n# Written by `ringmark submit`")
    assert sorted(here.iterdir()) == before


def cluster_here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])


def only_run(here: Path) -> Path:
    (run,) = (here / "runs" / "slurm").iterdir()
    return run


def test_what_slurm_would_refuse_or_never_start_leaves_nothing_behind(
    here: Path, slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster_here(slurm_cluster, monkeypatch)
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")  # scrubbed, so it cannot make the job fit

    with pytest.raises(ValueError, match="within the limit of partition debug, 10 minutes, got 2:00:00"):
        submit(["--site", "here.toml", "--time", "2:00:00", "--", "run", "s.py"], worker)
    assert submit(["--site", "here.toml", "--nodes", "9", "--", "run", "s.py"], worker) == 1
    error = capfd.readouterr().err
    assert error.startswith("ringmark submit: sbatch refused: ")
    assert error.count("\n") == 1
    assert not (here / "runs").exists()


def test_a_job_has_no_secrets_of_its_submitter_and_its_folder_has_none(
    here: Path, slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster_here(slurm_cluster, monkeypatch)
    names = [f"SERVICE{index}_{kind}" for index in range(10) for kind in ("TOKEN", "PASSWORD", "API_KEY", "SECRET")]
    for name in names:
        monkeypatch.setenv(name, f"canary-of-{name}")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:canary-of-proxy@host:1")
    monkeypatch.setenv("WANDB_API_KEY", "wanted")
    monkeypatch.setenv("SLURM_NODEID", "5")
    words = ["--site", "here.toml", "--keep-env", "WANDB_API_KEY", "--name", "quiet", "--", "run", "s.py", "end", "0"]

    assert submit([*words, "--db-password", "seen"], worker) == 0

    output = capfd.readouterr()
    run = only_run(here)
    (job,) = run_folder.jobs(run)
    slurm_cluster.wait_for(job.job_id, 30)
    seen = json.loads((run / "attempts" / "0" / batch_recorder.RECORD).read_text())["environment"]
    assert not set(names) & set(seen)
    assert "HTTPS_PROXY" not in seen
    assert seen["WANDB_API_KEY"] == "wanted"
    assert seen["PATH"]
    (run / "attempts" / "0" / batch_recorder.RECORD).unlink()
    found = subprocess.run(["grep", "-r", "canary", str(run)], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, "")
    assert "SERVICE0_TOKEN" in output.out
    assert "canary" not in output.out + output.err
    assert "--db-password looks like a secret" in output.err
    assert "seen" not in output.out
    assert "seen" not in (run / "record.json").read_text()
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    for name in ("spec.json", "record.json", "job.sbatch", "jobs.jsonl"):
        assert stat.S_IMODE((run / name).stat().st_mode) == 0o600


def test_three_gpus_on_two_nodes_and_a_kept_script_that_can_be_queued_by_hand(
    here: Path, slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_here(slurm_cluster, monkeypatch)
    assert submit(["--site", "here.toml", "--nodes", "2", "--gpus", "3", "--", "run", "s.py", "end", "0"], worker) == 0

    run = only_run(here)
    (job,) = run_folder.jobs(run)
    assert slurm_cluster.wait_for(job.job_id, 30)["NumNodes"] == "2"
    seen = json.loads((run / "attempts" / "0" / batch_recorder.RECORD).read_text())["environment"]
    assert (seen["SLURM_GPUS"], seen["SLURM_JOB_NUM_NODES"]) == ("3", "2")

    by_hand = slurm_cluster.command("sbatch", "--parsable", str(run / "job.sbatch")).strip()
    assert slurm_cluster.wait_for(by_hand, 30)["NumNodes"] == "2"
    assert (run / "attempts" / "1" / batch_recorder.RECORD).exists()


def test_a_chain_waits_for_its_own_jobs_and_a_sweep_gives_each_task_its_arguments(
    here: Path, slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_here(slurm_cluster, monkeypatch)
    (here / "sweep.txt").write_text('["0", "a,b"]\n["0", "$(x)"]\n')
    name = ["--name", "sweep", "--array", "sweep.txt", "--at-once", "1"]
    assert submit(["--site", "here.toml", *name, "--", "run", "s.py", "end"], worker) == 0
    sweep = only_run(here)
    (array,) = run_folder.jobs(sweep)
    slurm_cluster.wait_for(f"{array.job_id}_1", 30)
    seen = [
        json.loads((task / "attempts" / "0" / batch_recorder.RECORD).read_text())["spec"]["arguments"]
        for task in run_folder.tasks(sweep)
    ]
    assert seen == [["end", "0", "a,b"], ["end", "0", "$(x)"]]

    assert submit(["--site", "here.toml", "--name", "chain", "--chain", "2", "--", "run", "s.py", "wait"], worker) == 0
    (chain,) = (here / "runs" / "slurm").glob("chain-*")
    first, second = [job.job_id for job in run_folder.jobs(chain)]
    assert slurm_text.queue([second])[second].reason in ("Dependency", "None")
    assert slurm_cluster.show_job(second)["Dependency"].startswith(f"afterany:{first}")
    run_folder.ask_to_stop(chain, "enough")
    slurm_cluster.wait_for(second, 30)


def test_interpreters_are_looked_for_where_this_machine_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    precheck.check_interpreter(Site(python="/only/on/the/nodes/python"))
    precheck.check_interpreter(Site(python="python-of-a-module", modules=("x",)))
    with pytest.raises(ValueError, match="expected python on the PATH, got 'no-such-python'"):
        precheck.check_interpreter(Site(python="no-such-python"))
