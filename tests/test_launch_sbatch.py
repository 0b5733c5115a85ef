"""The batch script as text: the golden script, quoting that bash itself undoes, and a stand-in for sbatch."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import batch, node, sbatch
from launch.sbatch import Job, SubmitError, quote, render, scrubbed
from launch.sites import Site
from launch.submit import SubmitOptions, nproc_per_node, submit

GOLDEN = Path(__file__).parent / "golden" / "job.sbatch"
SITE = Site(
    partition="gpu",
    account="team",
    constraint="a100&ib",
    time="01:00:00",
    mem="64G",
    cpus_per_task=16,
    gpus_per_node=4,
    python="/opt/venv/bin/python",
    setup=("module load cuda", 'export NCCL_DEBUG="WARN"'),
    sbatch_options=("--exclusive", "--mail-type=FAIL"),
)
JOB = Job(
    name="resnet",
    nodes=2,
    nproc_per_node=4,
    worker=("launch.train", "--model", "resnet18-cifar", "--data-dir", "/data/it's 100%\n#SBATCH --nodes=9"),
    run_dir=Path("/runs/50% done"),
    work_dir=Path("/home/me/my work"),
    root=Path("/opt/ringmark"),
)
# Prints its arguments, each ended by NUL, wherever the script calls an interpreter.
PRINT_ARGV = "#!/bin/sh\nprintf '%s\\0' \"$@\"\n"

arguments = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


def test_a_rendered_script_is_the_golden_one() -> None:
    assert render(JOB, SITE) == GOLDEN.read_text(encoding="utf-8")


def test_a_plain_cluster_is_asked_for_nothing_it_was_not_told_about() -> None:
    script = render(replace(JOB, nproc_per_node=1), Site(python="python3"))

    for option in ("partition", "account", "qos", "constraint", "mem", "time", "gpus"):
        assert f"--{option}" not in script


def test_a_job_asks_for_as_many_gpus_as_it_has_ranks_on_a_node() -> None:
    assert "#SBATCH --gpus-per-node=2\n" in render(replace(JOB, nproc_per_node=2), SITE)
    assert "#SBATCH --gpus-per-node=a100:2\n" in render(replace(JOB, nproc_per_node=2), replace(SITE, gpu_type="a100"))


def test_the_time_of_a_job_goes_before_the_time_of_its_site() -> None:
    script = render(replace(JOB, time="5"), SITE)

    assert "--time=5\n" in script
    assert "01:00:00" not in script


def test_more_ranks_than_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at most 4 ranks per node, one per GPU, got --nproc-per-node 5"):
        render(replace(JOB, nproc_per_node=5), SITE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "expected --name"),
        ({"name": "x\n#SBATCH --nodes=9"}, "expected --name"),
        ({"name": "-x"}, "expected --name"),
        ({"name": "../x"}, "expected --name"),
        ({"nodes": 0}, "expected --nodes of at least 1, got 0"),
        ({"nproc_per_node": 0}, "expected --nproc-per-node of at least 1, got 0"),
        ({"worker": ()}, "expected a worker module"),
        ({"worker": ("--model", "x")}, "expected a worker module"),
        ({"worker": ("launch.train", "a\0b")}, "expected worker arguments of UTF-8 text"),
        ({"worker": ("launch.train", "\udcff")}, "expected worker arguments of UTF-8 text"),
        ({"run_dir": Path("runs")}, "expected --run-dir as an absolute folder"),
        ({"run_dir": Path("/runs\n#SBATCH --nodes=9")}, "expected --run-dir without control characters"),
        ({"run_dir": Path("/runs\\x")}, "expected --run-dir without control characters and backslashes"),
        ({"root": Path("/opt/a:b")}, "expected ringmark in a folder without ':'"),
        ({"time": "1 hour"}, "expected --time"),
        ({"time": ""}, "expected --time"),
    ],
)
def test_a_job_that_no_script_can_carry_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(JOB, **change)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(arguments, max_size=8))
def test_bash_reads_back_what_was_quoted_on_one_line(words: list[str]) -> None:
    line = " ".join(quote(word) for word in words)

    assert line.isprintable()
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' end {line}"], capture_output=True, check=True).stdout
    assert printed.decode().split("\0")[:-1] == ["end", *words]


@settings(max_examples=25, deadline=None)
@given(words=st.lists(arguments, max_size=5))
def test_a_rendered_script_is_bash_whatever_the_arguments(words: list[str]) -> None:
    script = render(replace(JOB, worker=("launch.train", *words)), SITE)

    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    # sbatch stops looking for options at the first command, and refuses carriage returns.
    assert script.index("\nset -euo") > max(script.rfind("\n#SBATCH"), 0)
    assert "\r" not in script


def run_script(tmp_path: Path, worker: tuple[str, ...], site: Site) -> list[str]:
    """Run a rendered script under bash with an interpreter that only prints its argv; returns that argv."""
    python = tmp_path / "it's $(touch pwned) python"
    python.write_text(PRINT_ARGV)
    python.chmod(0o755)
    work_dir = tmp_path / "work $(touch pwned) `touch pwned`"
    work_dir.mkdir()
    job = replace(JOB, worker=worker, work_dir=work_dir, root=tmp_path / "root's $(touch pwned)")
    script = render(job, replace(site, python=str(python)))
    environment = {**os.environ, "HOME": str(tmp_path)}
    result = subprocess.run(
        ["bash"], input=script.encode(), cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    assert not list(tmp_path.rglob("pwned"))
    return result.stdout.decode().split("\0")[:-1]


def test_hostile_arguments_arrive_unchanged_and_execute_nothing(tmp_path: Path) -> None:
    worker = (
        "launch.train",
        "--model",
        'it\'s "x" $(touch pwned) `touch pwned` ${HOME} $HOME $worker $$ \\ !! ~ * ? [a] {a,b}',
        "line\nbreak\r\ntouch pwned\n#SBATCH --nodes=9",
        "; touch pwned;",
        "&& touch pwned",
        "> pwned",
        "",
        "--",
        "ünïcödé 火 \u2028 \x1b[31m\x7f\x85",
        "$'\\x41'",
    )
    argv = run_script(tmp_path, worker, Site())

    assert argv == ["-m", "launch.batch", "--nproc-per-node", "4", "--", *worker]


def test_setup_lines_may_read_unset_variables_but_must_succeed(tmp_path: Path) -> None:
    assert run_script(tmp_path, ("launch.train",), Site(setup=("echo $NOBODY_SET_THIS >&2",)))
    script = render(JOB, replace(SITE, setup=("false",)))
    assert subprocess.run(["bash"], input=script.encode(), capture_output=True).returncode == 1


def test_leftovers_of_an_enclosing_job_do_not_reach_sbatch() -> None:
    leftovers = {"SBATCH_TIMELIMIT": "7", "SLURM_NODEID": "1", "SLURMD_NODENAME": "n1", "PMI_RANK": "0"}
    kept = {"SLURM_CONF": "/etc/x.conf", "PATH": "/bin", "HOME": "/root"}

    assert scrubbed(leftovers | kept) == kept


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a stand-in for sbatch first on the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / "sbatch").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_submitted_script_is_kept_under_its_job_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", monkeypatch, 'cp "$2" seen; pwd -P > cwd; echo "77;cluster-a"')
    run_dir = tmp_path / "a" / "b"

    assert sbatch.submit("#!/bin/bash\necho ü\n", run_dir) == "77"

    assert (run_dir / "job-77.sbatch").read_text(encoding="utf-8") == "#!/bin/bash\necho ü\n"
    assert (run_dir / "seen").read_bytes() == (run_dir / "job-77.sbatch").read_bytes()
    assert (run_dir / "cwd").read_text().strip() == str(run_dir)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'sbatch: error: invalid partition' >&2; exit 1", "sbatch refused the job: invalid partition; correct"),
        ("exit 5", "sbatch refused the job: exit code 5; correct"),
        ("echo welcome", "expected a job id from sbatch, got 'welcome'"),
    ],
)
def test_what_sbatch_says_becomes_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    stand_in(tmp_path / "bin", monkeypatch, body)

    with pytest.raises(SubmitError, match=message):
        sbatch.submit("#!/bin/bash\n", tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_machine_without_sbatch_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert submit(SubmitOptions(site="local", run_dir=tmp_path / "run"), ("launch.train",)) == 1
    assert "expected SLURM's sbatch on the PATH, found none" in capsys.readouterr().err


def test_a_dry_run_prints_the_script_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    worker = ("launch.train", "--model", "resnet18-cifar")

    assert submit(SubmitOptions(site="gpu-example", nodes=2, dry_run=True), worker) == 0

    script = capsys.readouterr().out
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=ringmark-train\n")
    assert f"--output={tmp_path}/runs/slurm/%x-%j.out\n" in script
    assert script.endswith(f"exec {sys.executable} -m launch.batch --nproc-per-node 4 -- {' '.join(worker)}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("site", "asked", "ranks"), [("gpu-example", None, 4), ("local", None, 1), ("local", 3, 3)])
def test_a_node_gets_the_ranks_asked_for_or_one_per_gpu(site: str, asked: int | None, ranks: int) -> None:
    assert nproc_per_node(SubmitOptions(site=site, nproc_per_node=asked)) == ranks


def test_batch_and_node_refuse_to_run_outside_slurm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    address = ["--master-addr", "h", "--master-port", "1"]

    assert batch.main(["--nproc-per-node", "1", "--", "launch.train"]) == 2
    assert capsys.readouterr().err.startswith("launch.batch: expected to run inside a SLURM job")
    assert node.main([*address, "--nproc-per-node", "1", "--", "launch.train"]) == 2
    assert capsys.readouterr().err.startswith("launch.node: expected to run inside a SLURM step")
    assert node.main([*address, "--nproc-per-node", "1"]) == 2
    assert "expected `--` and a worker module" in capsys.readouterr().err


def test_several_tasks_on_one_node_are_refused() -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2"}

    assert node.read_step(step) == (1, 2)
    with pytest.raises(ValueError, match="expected one task per node, got 8 tasks on 2 nodes"):
        node.read_step(step | {"SLURM_STEP_NUM_TASKS": "8"})


def test_the_worker_starts_after_the_first_double_dash() -> None:
    assert batch.split_worker(["--a", "1", "--", "m", "--", "-h"]) == (["--a", "1"], ["m", "--", "-h"])


@pytest.mark.parametrize(
    ("body", "code", "drained"),
    [("pass", 0, False), ("raise SystemExit(3)", 3, True), ("os.kill(os.getpid(), 9)", 137, True)],
)
def test_a_node_that_fails_waits_until_srun_has_read_its_last_words(
    monkeypatch: pytest.MonkeyPatch, body: str, code: int, drained: bool
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("launch.node.time.sleep", waits.append)

    assert node.run_and_drain([sys.executable, "-c", f"import os; {body}"]) == code
    assert waits == ([node.DRAIN_S] if drained else [])


def test_a_node_outlives_the_sigterm_that_ends_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.node.DRAIN_S", 0.0)
    both = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)"

    assert node.run_and_drain([sys.executable, "-c", both]) == 128 + 15
