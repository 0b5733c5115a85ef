"""The launcher on one machine: torchrun's contract, one verdict, the exit code of the rank that failed first."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.verdict import read
from tests.launches import SCRIPT, TORCHRUN, facts, left_behind, listening_ports, processes_of, run, start

OURS = {"RINGMARK_RANK_SOCKET", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
"""What ranks find beside torchrun's variables."""
DIFFERENT = {"MASTER_PORT", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE", "OMP_NUM_THREADS"}
DIFFERENT |= {"TORCHELASTIC_SIGNALS_TO_HANDLE"}
"""Variables whose values differ from launch to launch, or that are chosen better."""


@pytest.mark.parametrize(
    "options",
    [
        ["--nproc_per_node=3", "--max-restarts", "2", "--role", "tr"],
        ["--standalone", "--nproc-per-node", "2", "--rdzv_id", "mine"],
        ["--nnodes", "1:1", "--nproc_per_node", "2", "--tee", "3", "--log-dir", "logs"],
    ],
)
def test_ranks_find_what_torchrun_gives_them(tmp_path: Path, options: list[str]) -> None:
    words = [*options, SCRIPT, "show", "--n", "10", "--nproc_per_node", "7"]
    ours, theirs = run(tmp_path, *words), run(tmp_path, *words[:-4], launcher=TORCHRUN)
    assert (ours.returncode, theirs.returncode) == (0, 0), ours.stderr + theirs.stderr
    mine, others = facts(ours.stdout), facts(theirs.stdout)
    assert sorted(mine) == sorted(others)
    for rank, fact in mine.items():
        other = others[rank]
        assert set(fact["env"]) - set(other["env"]) == OURS
        assert set(other["env"]) - set(fact["env"]) <= {"OMP_NUM_THREADS"}
        same = set(other["env"]) - DIFFERENT
        assert {key: fact["env"][key] for key in same} == {key: other["env"][key] for key in same}
        assert fact["argv"] == [SCRIPT, "show", "--n", "10", "--nproc_per_node", "7"]
        assert other["argv"] == [SCRIPT, "show"]
        for key in ("path", "cwd", "name", "has_main", "session"):
            assert fact[key] == other[key], key
        assert fact["launch"] == []
        assert fact["env"]["OMP_NUM_THREADS"] == str(fact["threads"])


def test_variables_of_torchrun_mean_what_they_mean_there(tmp_path: Path) -> None:
    done = run(tmp_path, SCRIPT, "show", PET_NPROC_PER_NODE="2", PET_ROLE="r")
    assert {fact["env"]["ROLE_NAME"] for fact in facts(done.stdout).values()} == {"r"}
    assert sorted(facts(done.stdout)) == [0, 1]


def test_cpus_are_shared_out_and_told(tmp_path: Path) -> None:
    done = run(tmp_path, "-j", "2", SCRIPT, "show", "x")
    found = facts(done.stdout)
    first, second = (set(found[rank]["cpus"]) for rank in (0, 1))
    assert not first & second
    assert done.stderr.startswith("ringmark: 2 ranks forked after one import of torch; CPUs ")
    together = run(tmp_path, "-j", "1x2", "--no-pin", "--quiet", SCRIPT, "show")
    assert {tuple(fact["cpus"]) for fact in facts(together.stdout).values()} == {tuple(sorted(first | second))}
    assert together.stderr == ""


@pytest.mark.parametrize("path", [[], ["--plain"]], ids=["forked", "started"])
@pytest.mark.parametrize(("mode", "code"), [("tie", 42), ("raise", 1), ("kill", 137)])
def test_the_rank_that_failed_first_is_named_and_its_code_is_the_launchs(
    tmp_path: Path, mode: str, code: int, path: list[str]
) -> None:
    done = run(tmp_path, *path, "--nproc-per-node", "3", "--run-dir", "run", SCRIPT, mode)
    assert done.returncode == code, done.stderr
    verdict = read(tmp_path / "run" / "verdict.json")
    assert (verdict.ranks, verdict.code) == ((2,), code)
    assert f"rank 2 ({socket.gethostname()}, local rank 2)" in done.stderr
    if mode == "raise":
        assert "ValueError: the last rank is broken" in done.stderr
        assert any("launched.py" in line for line in verdict.lines)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert left_behind(tmp_path) == []


def test_a_rank_that_leaves_early_is_the_culprit_although_its_code_is_0(tmp_path: Path) -> None:
    done = run(tmp_path, "--nproc-per-node", "3", SCRIPT, "early")
    assert done.returncode == 9, done.stderr
    assert "rank 2" in done.stderr


def test_ranks_start_again_after_one_was_killed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "verdict-restart-7.json").touch()  # of an earlier launch
    done = run(tmp_path, "--nproc-per-node", "2", "--max-restarts", "2", "--run-dir", "run", SCRIPT, "die-once")
    assert done.returncode == 0, done.stderr
    kept = {path.name: read(path).cause for path in (tmp_path / "run").glob("verdict*")}
    assert kept == {"verdict.json": "done", "verdict-restart-1.json": "signal"}
    sums = [json.loads(line.partition("] ")[2]) for line in done.stdout.splitlines() if '{"rank"' in line]
    assert sorted((line["rank"], line["sum"], line["attempt"]) for line in sums) == [(0, 1, 1), (1, 1, 1)]
    assert "SIGKILL" in done.stderr
    assert "restart 1: all ranks start again" in done.stderr


def test_ranks_whose_parent_is_killed_are_missed_at_once(tmp_path: Path) -> None:
    done = run(tmp_path, "--nproc-per-node", "2", "--run-dir", "run", SCRIPT, "bereft")
    verdict = read(tmp_path / "run" / "verdict.json")
    assert (done.returncode, verdict.code, verdict.cause) == (9, 9, "lost node"), done.stderr
    assert "the process that forks the ranks was ended from outside" in done.stderr
    assert left_behind(tmp_path) == []


def test_ranks_whose_parent_was_killed_are_started_anew(tmp_path: Path) -> None:
    done = run(tmp_path, "--nproc-per-node", "2", "--max-restarts", "1", SCRIPT, "bereft")
    assert done.returncode == 0, done.stderr
    sums = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted((line["rank"], line["sum"], line["attempt"]) for line in sums) == [(0, 1, 1), (1, 1, 1)]
    assert "ended from outside" in done.stderr


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_a_rank_that_others_wait_for_in_vain_is_named_with_all_stacks(tmp_path: Path, mode: str) -> None:
    done = run(tmp_path, "--nproc-per-node", "3", "--run-dir", "run", SCRIPT, mode, "8")
    verdict = read(tmp_path / "run" / "verdict.json")
    assert (done.returncode, verdict.cause, verdict.ranks) == (6, "hang", (2,)), done.stderr
    stacks = {stack.rank: stack for node in verdict.nodes for stack in node.stacks}
    assert all(any("launched.py" in frame for frame in stack.frames) for stack in stacks.values())
    assert 2 in stacks
    assert left_behind(tmp_path) == []


def test_a_hang_is_seen_before_any_timeout_of_torchs(tmp_path: Path) -> None:
    done = run(tmp_path, "--nproc-per-node", "3", "--hang-timeout", "10", "--run-dir", "run", SCRIPT, "skip", "1000")
    verdict = read(tmp_path / "run" / "verdict.json")
    assert (done.returncode, verdict.cause, verdict.ranks) == (6, "hang", (2,)), done.stderr


@pytest.fixture
def staying(tmp_path: Path) -> Iterator[Any]:
    process = start(tmp_path, "--nproc-per-node", "2", SCRIPT, "stay")
    assert process.stdout is not None
    assert [process.stdout.readline()[:2] for _ in range(2)] == ["up", "up"]
    yield process
    process.kill()
    process.communicate()


def test_nothing_is_left_when_the_launcher_is_killed(tmp_path: Path, staying: Any) -> None:
    assert len(processes_of(tmp_path)) >= 6  # launcher, guardian, nursery, two ranks, and what they started
    staying.kill()
    assert left_behind(tmp_path) == []


def test_one_node_listens_where_nobody_else_can_connect(tmp_path: Path, staying: Any) -> None:
    deadline = time.monotonic() + 20
    ports: list[tuple[str, int]] = []
    while len(ports) < 3 and time.monotonic() < deadline:  # the store and one socket of each rank
        ports = listening_ports(processes_of(tmp_path))
    assert len(ports) >= 3
    assert {address for address, _ in ports} == {"0100007F"}


def test_a_second_ctrl_c_ends_everything_now(tmp_path: Path) -> None:
    process = start(tmp_path, "--nproc-per-node", "2", SCRIPT, "patient")
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert left_behind(tmp_path) == []


def test_a_signal_is_passed_on_and_the_ranks_code_comes_back(tmp_path: Path) -> None:
    process = start(tmp_path, "--nproc-per-node", "2", SCRIPT, "patient")
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 75, err
    assert err.count("\n") == 1  # how it was started


def test_ranks_that_do_not_end_are_made_to(tmp_path: Path) -> None:
    process = start(tmp_path, "--nproc-per-node", "2", "--shutdown-timeout", "6", SCRIPT, "patient")
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out.count("not yet") == 2
    assert left_behind(tmp_path) == []


def test_why_ranks_are_not_forked_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, "--no-python", "--nproc-per-node", "2", "/bin/sh", "-c", "exit $((RANK * 3))")
    assert done.returncode == 3
    assert "2 ranks started one by one (--no-python)" in done.stderr
    assert "rank 1" in done.stderr
