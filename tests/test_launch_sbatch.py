"""The batch script and sbatch's options as text, and stand-ins for SLURM's programs that answer badly."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launch import run_folder, sbatch, slurm_text
from launch.sbatch import Job, options, options_again, render
from launch.sites import Site
from launch.slurm_text import SlurmError, scrubbed, seconds

GOLDEN = Path(__file__).parent / "golden" / "job.sbatch"
SITE = Site(
    partition="gpu",
    account="team",
    constraint="a100&ib",
    time="01:00:00",
    mem="64G",
    cpus_per_task=16,
    gpus_per_node=4,
    python="/opt/it's/bin/python",
    modules=("gcc/13", "cuda/12.6"),
    setup=('export NCCL_DEBUG="WARN"',),
    exclude="n9",
    sbatch_options=("--exclusive", "--mail-type=FAIL"),
)
JOB = Job(
    name="resnet",
    nodes=2,
    nproc_per_node=4,
    run_dir=Path("/runs/50% done/it's $(me)"),
    root=Path("/opt/ring mark"),
    exclude="n3,rack1-[4-6]",
    requeue=True,
)


def test_a_rendered_script_is_the_golden_one() -> None:
    assert render(JOB, SITE) == GOLDEN.read_text(encoding="utf-8")


def test_the_script_carries_what_the_command_line_carries() -> None:
    for job in (JOB, replace(JOB, tasks=5, at_once=2), replace(JOB, nproc_per_node=None, gpus=3)):
        lines = [line.removeprefix("#SBATCH ") for line in render(job, SITE).splitlines() if line.startswith("#SBATCH")]
        # bash reads a header's quotes as sbatch does.
        words = subprocess.run(["bash", "-c", f"printf '%s\\0' {' '.join(lines)}"], capture_output=True, check=True)
        assert words.stdout.decode().split("\0")[:-1] == options(job, SITE)


def test_a_plain_cluster_is_asked_for_nothing_it_was_not_told_about() -> None:
    words = " ".join(options(Job(name="x", run_dir=Path("/r")), Site(python="python3")))

    for option in ("partition", "account", "qos", "constraint", "mem", "time", "gpus", "gres", "cpus", "reservation"):
        assert f"--{option}" not in words
    assert "--no-requeue" in words


@pytest.mark.parametrize(
    ("job", "site", "expected"),
    [
        ({"nproc_per_node": 2}, {}, "--gpus-per-node=2"),
        ({"nproc_per_node": 2}, {"gpu_type": "a100"}, "--gpus-per-node=a100:2"),
        ({}, {"gpu_type": "a100", "gpus_syntax": "gres"}, "--gres=gpu:a100:4"),
        ({"nproc_per_node": None, "gpus": 5}, {}, "--gpus=5"),
        ({"nproc_per_node": None, "gpus": 5}, {"gpu_type": "h100", "gpus_syntax": "gres"}, "--gpus=h100:5"),
    ],
)
def test_a_job_asks_for_as_many_gpus_as_it_has_ranks(
    job: dict[str, object], site: dict[str, object], expected: str
) -> None:
    words = options(replace(JOB, **job), replace(SITE, **site))  # type: ignore[arg-type]

    assert [word for word in words if word.startswith(("--gpus", "--gres"))] == [expected]


def test_the_time_of_a_job_goes_before_the_time_of_its_site() -> None:
    assert [word for word in options(replace(JOB, time="5"), SITE) if "time" in word] == ["--time=5"]


def test_an_array_is_numbered_from_0_and_each_task_has_its_own_folder() -> None:
    job = replace(JOB, run_dir=Path("/r"), tasks=12, at_once=3)

    assert {"--array=0-11%3", "--output=/r/task-%a/job-%A_%a.out"} <= set(options(job, SITE))
    assert render(job, SITE).endswith('--spec /r/task-"$SLURM_ARRAY_TASK_ID"/spec.json\n')
    assert "--array=0-11" in options(replace(job, at_once=None), SITE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nproc_per_node": 5}, "expected at most 4 ranks per node, one per GPU, got --nproc-per-node 5"),
        ({"gpus": 1}, "expected --gpus from 2 to 8, at least one on each of 2 nodes with 4, got 1"),
        ({"gpus": 9}, "expected --gpus from 2 to 8"),
    ],
)
def test_a_job_that_does_not_fit_its_site_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(replace(JOB, **change), SITE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "expected --name"),
        ({"name": "x\n#SBATCH --nodes=9"}, "expected --name"),
        ({"name": "-x"}, "expected --name"),
        ({"name": "../x"}, "expected --name"),
        ({"nodes": 0}, "expected --nodes of at least 1 and at most 10000, got 0"),
        ({"nproc_per_node": 0}, "expected --nproc-per-node of at least 1"),
        ({"tasks": 0}, "expected --array of at least 1"),
        ({"at_once": 0}, "expected --at-once of at least 1"),
        ({"run_dir": Path("runs")}, "expected --run-dir as an absolute folder"),
        ({"run_dir": Path("/runs\n#SBATCH --nodes=9")}, "expected --run-dir without control characters"),
        ({"run_dir": Path("/runs\\x")}, "expected --run-dir without control characters and backslashes"),
        ({"root": Path("/opt/a:b")}, "expected ringmark in a folder without ':'"),
        ({"time": "1 hour"}, "expected --time"),
        ({"time": ""}, "expected --time"),
        ({"exclude": "n1 n2"}, "expected --exclude"),
        ({"exclude": "-n1"}, "expected --exclude"),
    ],
)
def test_a_job_that_no_script_can_carry_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(JOB, **change)  # type: ignore[arg-type]


def test_setup_lines_may_read_unset_variables_but_must_succeed() -> None:
    for setup, code in (("echo $NOBODY_SET_THIS >&2", 0), ("false", 1)):
        script = render(replace(JOB, root=Path("/")), Site(python="true", setup=(setup,)))
        assert subprocess.run(["bash"], input=script.encode(), capture_output=True).returncode == code


def test_leftovers_of_an_enclosing_job_do_not_reach_slurms_programs() -> None:
    leftovers = {"SBATCH_TIMELIMIT": "7", "SLURM_NODEID": "1", "SLURMD_NODENAME": "n1", "PMI_RANK": "0", "PMIX_A": "1"}
    kept = {"SLURM_CONF": "/etc/x.conf", "PATH": "/bin", "HOME": "/root"}

    assert scrubbed({**leftovers, "SQUEUE_FORMAT": "%j", "HF_TOKEN": "x"} | kept, without=["HF_TOKEN"]) == kept


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str, body: str) -> None:
    """Put a stand-in for one of SLURM's programs first on the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / program).write_text(f"#!/bin/sh\n{body}\n")
    (folder / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'sbatch: error: invalid partition' >&2; exit 1", "sbatch refused: invalid partition$"),
        ("printf 'a\\033[31mb\\n' >&2; exit 1", r"sbatch refused: a\[31mb$"),
        ("exit 5", "sbatch refused: exit code 5"),
        ("echo welcome", "expected a job id from sbatch, got 'welcome'"),
    ],
)
def test_what_sbatch_says_becomes_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    stand_in(tmp_path / "bin", monkeypatch, "sbatch", body)

    with pytest.raises(SlurmError, match=message):
        sbatch.queue(tmp_path, ["--nodes=1"])
    assert run_folder.jobs(tmp_path) == []


def test_a_queued_job_is_noted_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", monkeypatch, "sbatch", f'printf "%s\\n" "$@" > {tmp_path}/seen; echo "77;cluster-a"')
    words = ["--nodes=1", "--exclude=n1"]

    job = sbatch.queue(tmp_path, words, after="76")

    assert (job.job_id, job.options) == ("77", tuple(words))
    assert (tmp_path / "seen").read_text().splitlines() == [
        *("--parsable", *words, "--dependency=afterany:76", str(tmp_path / "job.sbatch"))
    ]
    assert run_folder.jobs(tmp_path) == [job]
    assert options_again(tmp_path) == words
    assert options_again(tmp_path, "n2,n[4-5]") == ["--nodes=1", "--exclude=n1,n2,n[4-5]"]
    with pytest.raises(ValueError, match="expected --exclude"):
        options_again(tmp_path, "n2;n3")
    with pytest.raises(ValueError, match="expected a job id"):
        sbatch.queue(tmp_path, words, after="76,singleton")


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SlurmError, match="expected SLURM's squeue on the PATH, found none"):
        slurm_text.queue(["1"])


def test_an_answer_in_another_format_is_not_guessed_at() -> None:
    good = "12_3|RUNNING|1:02|UNLIMITED|2|n[1-2]|2026-01-01T00:00:00|None"
    (entry,) = slurm_text.parse_queue(good + "\n")
    assert (entry.job_id, entry.state, entry.node_list, entry.over) == ("12_3", "RUNNING", "n[1-2]", False)
    assert slurm_text.parse_queue(good.replace("None", "a|b"))[0].reason == "a|b"
    for bad in ("12|RUNNING", good.replace("12_3", "12_[3-4]"), good.replace("12_3", "1;2"), "slurm is down"):
        with pytest.raises(SlurmError, match="expected 8 fields behind a job id from squeue"):
            slurm_text.parse_queue(bad)


def test_times_are_read_as_slurm_writes_them() -> None:
    times = {"5": 300, "1:30": 90, "2:00:00": 7200, "1-0": 86400, "1-2:30": 95400, "1-02:03:04": 93784}

    assert {text: seconds(text) for text in times} == times
    assert [seconds(text) for text in ("infinite", "UNLIMITED", "", "1:2:3:4", "-1", "\u0661")] == [None] * 6


def test_a_predicted_start_is_slurms_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", monkeypatch, "sbatch", "cat >/dev/null; echo 'sbatch: Job 3 to start at noon' >&2")

    assert sbatch.predict("#!/bin/bash\n", ["--nodes=1"]) == "to start at noon"


def test_a_limit_of_time_is_of_the_partitions_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", monkeypatch, "sinfo", "printf 'gpu|1-00:00:00\\ndebug*|10:00\\nlong|infinite\\n'")

    assert slurm_text.partition_limits(None) == {"debug": 600}
    assert slurm_text.partition_limits("gpu,long") == {"gpu": 86400, "debug": 600, "long": None}


def test_a_line_of_jobs_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    run_folder.add_job(tmp_path, run_folder.Job(job_id="1", time_s=0.0, options=("--a",)))
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write('{"job_id": "2", "ti\n')
    run_folder.add_job(tmp_path, run_folder.Job(job_id="3", time_s=0.0, options=()))

    assert [job.job_id for job in run_folder.jobs(tmp_path)] == ["1", "3"]
    assert json.loads((tmp_path / "jobs.jsonl").read_text().splitlines()[0])["options"] == ["--a"]
