"""The doctor as a whole: on this machine, with a node that says nothing, and on two real SLURM nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import doctor_crew
from launch.argv import UsageError
from launch.checks.finding import Finding
from launch.doctor import DoctorOptions, Report, doctor, examine, lines, write
from launch.doctor_crew import Crew, crew_of
from launch.doctor_node import LONGEST_PART_BYTES, Assembler, parts
from tests.slurm_cluster import Cluster

ROOT = Path(__file__).resolve().parent.parent
NODE = (sys.executable, "-m", "launch.doctor_node")
QUICK = ["--no-import-torch", "--gpus", "0", "--cpus", "1"]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment of no SLURM job and without variables that are complained of."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "NCCL_", "GLOO_", "TORCH_NCCL_")):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("alone")
def test_this_machine_is_looked_at_and_nothing_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, file = tmp_path / "runs", tmp_path / "doctor.json"
    run_dir.mkdir()
    assert doctor([*QUICK, "--run-dir", str(run_dir), "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert "\x1b" not in shown
    assert shown.splitlines()[-1].startswith("nodes: 1, errors: 0")
    assert {"versions", "disk", "CPUs", "load", "limits", "GPUs", "leftovers", "variables", "names"} <= {
        finding["check"] for finding in found["findings"]
    }
    assert (found["exclude"], file.stat().st_mode & 0o777) == ("", 0o600)
    assert found["nodes"][0]["cpus"] == sorted(os.sched_getaffinity(0))
    assert found["nodes"][0]["endpoints"] == [], "a machine alone opens no port"
    assert list(run_dir.iterdir()) == []


@pytest.mark.usefixtures("alone")
def test_an_error_is_exit_code_1_and_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(["--no-import-torch", "--run-dir", str(tmp_path), "--cpus", "4096"]) == 1
    assert capsys.readouterr().out.startswith("error")


def test_a_stopped_node_a_dead_one_and_one_that_fails_are_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_crew, "END_S", 2.0)
    broken = (sys.executable, "-c", "from launch import doctor_node as d; d.gpus = None; d.main()", "2")
    commands = ((*NODE, "0"), ("sh", "-c", "kill -STOP $$"), broken, ("sh", "-c", "echo no python >&2"))
    crew = Crew(commands=commands, names=("fine", "stopped", "broken", "dead"))
    options = DoctorOptions(run_dir=tmp_path, import_torch=False, timeout_s=20)
    report = examine(crew, options, os.environ)
    silent = {each.node: each for each in report.findings if each.check == "answer"}
    assert set(silent) == {"stopped", "broken", "dead"}
    assert "did not answer within 20 s" in silent["stopped"].sentence
    assert "AttributeError" in silent["broken"].sentence
    assert report.exclude == ("broken", "dead", "stopped")
    assert [facts["node"] for facts in report.nodes] == ["fine"]
    assert list(tmp_path.iterdir()) == []


def test_when_no_node_answers_none_is_to_blame(tmp_path: Path) -> None:
    crew = Crew(commands=(("sh", "-c", "echo srun: no >&2; exit 1"),), names=("n1", "n2"))
    report = examine(crew, DoctorOptions(run_dir=tmp_path), os.environ)
    assert [(each.level, each.node) for each in report.findings] == [("error", "n1"), ("error", "n2")]
    assert all("its process ended: srun: no" in each.sentence for each in report.findings)
    assert report.exclude == ()


def report_of(*findings: Finding) -> Report:
    return Report(nodes=({}, {}), findings=findings, mesh={}, gbit={})


def test_text_of_other_machines_cannot_steer_the_terminal() -> None:
    hostile = Finding(level="ok", check="versions", node="", sentence="a\x1b[2Jb\nc\u2028d\r\u202ee")
    (line, *_) = lines(report_of(hostile), colour=False)
    assert line.isprintable()
    assert line.startswith("ok  versions    a")


def test_bad_nodes_are_an_exclude_list_on_the_terminal_and_in_the_file(tmp_path: Path) -> None:
    def bad(node: str) -> Finding:
        return Finding(level="error", check="disk", node=node, sentence="s", bad_node=True)

    report = report_of(bad("n5"), bad("n2"), bad("n5"), Finding(level="error", check="CPUs", node="n3", sentence="s"))
    shown = lines(report, colour=True)
    assert shown[-1] == "--exclude=n2,n5"
    assert shown[0].startswith("\x1b[31merror\x1b[0m")
    write(report, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["exclude"] == "n2,n5"


@given(st.lists(st.integers(0, 3 * LONGEST_PART_BYTES), min_size=1, max_size=4), st.randoms())
def test_answers_arrive_whole_however_their_lines_are_mixed(sizes: list[int], random: Any) -> None:
    answers = {member: {"did": "facts", "text": "é" * size} for member, size in enumerate(sizes)}
    waiting = [list(parts(member, answer)) for member, answer in answers.items()]
    assembler, found = Assembler(), {}
    while any(waiting):
        queue = random.choice([queue for queue in waiting if queue])
        assert len(queue[0]) < 700
        assembler.add("Welcome to this node!")
        whole = assembler.add(queue.pop(0))
        if whole:
            found[whole[0]] = whole[1]
    assert found == answers


def test_mistakes_of_the_command_are_one_sentence(tmp_path: Path) -> None:
    for argv, words in (
        (["--gpus", "-1"], "--gpus of at least 0"),
        (["--timeout-s", "0"], "--timeout-s above 0"),
        (["--nodes", "some"], "nodes"),
    ):
        with pytest.raises((UsageError, ValueError), match=words):
            doctor(argv)
    with pytest.raises(ValueError, match="check the path"):
        doctor([*QUICK, "--nodes", "this", "--run-dir", str(tmp_path), "--json", str(tmp_path / "no" / "file")])


def test_outside_a_job_or_by_request_it_is_this_machine() -> None:
    assert len(crew_of({"PATH": os.environ["PATH"]}, "all").names) == 1
    job = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "7", "SLURMD_NODENAME": "n9"}
    this = crew_of(job, "this")
    assert (this.names, this.asked, this.commands[0][0]) == (("n9",), 7, sys.executable)


@pytest.mark.xdist_group("slurm")
def test_all_nodes_of_a_job_are_looked_at_within_15_seconds(slurm_cluster: Cluster, tmp_path: Path) -> None:
    file, script = tmp_path / "doctor.json", tmp_path / "job"
    call = "import sys, time; from launch.doctor import doctor; start = time.monotonic(); code = doctor(sys.argv[1:]); "
    call += "print('took', time.monotonic() - start); sys.exit(code)"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{call}" --json {file} --run-dir {tmp_path}\n')
    environment = os.environ | slurm_cluster.environment | {"PYTHONPATH": str(ROOT), "NCCL_SOCKET_IFNMAE": "eth0"}
    output = tmp_path / "out"
    sbatch = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--gres=gpu:1"]
    job_id = subprocess.run(
        [*sbatch, f"--output={output}", str(script)], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    job = slurm_cluster.wait_for(job_id, timeout_s=120)
    shown = output.read_text()
    found = json.loads(file.read_text())
    # The cluster's GPUs are stand-ins that no driver knows: the doctor must not be fooled.
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0"), shown
    assert [(each["check"], each["node"]) for each in found["findings"] if each["level"] == "error"] == [("GPUs", "")]
    assert [each["node"] for each in found["nodes"]] == ["n1", "n2"]
    assert [each["cpus"] for each in found["nodes"]] == [sorted(os.sched_getaffinity(0))] * 2
    assert all(each["import"]["devices"] == [] and each["import"]["seconds"] > 0 for each in found["nodes"])
    passed = {each["check"] for each in found["findings"] if each["level"] == "ok"}
    assert {"versions", "connections", "clocks", "shared folder", "bandwidth", "CPUs"} <= passed, shown
    assert set(found["gbit"]) == {"n1 > n2", "n2 > n1"}
    assert "did you mean NCCL_SOCKET_IFNAME?" in shown
    assert float(shown.split("took")[1]) > 0
