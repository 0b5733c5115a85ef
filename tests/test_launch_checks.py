"""Each check of the doctor sees the fault it is there for: real ones where this machine can have them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from launch.checks import gpus, machine, software, storage, variables
from launch.checks.finding import Finding

ROOT = Path(__file__).resolve().parent.parent
FINE: dict[str, Any] = {
    "cpus": [0, 1],
    "online_cpus": 2,
    "load": 0.1,
    "limits": {"memlock": None, "nofile": 4096, "nproc": None, "core": 0},
    "core_pattern": "core",
    "rdma": False,
    "gpus": {"error": None, "count": 2, "visible": None, "asked": 2, "users": [], "leftover": []},
    "variables": {},
    "interfaces": ["lo", "eth0"],
    "disks": {"the run folder": {"path": "/runs", "free_bytes": 1 << 40, "free_inodes": None}},
    "write_error": None,
    "versions": {"python": "3.11", "torch": "2.15", "torchvision": "0.29", "commit": "abc"},
    "import": {"seconds": 1.0, "devices": ["GPU", "GPU"]},
}


def nodes(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Facts of nodes a, b, ...: fine but for the changes."""
    return [{**FINE, "member": member, "node": "abcdef"[member], **change} for member, change in enumerate(changes)]


def one(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def in_child(code: str, before: Callable[[], None]) -> Any:
    """What a Python program prints as JSON, in a process that is changed before it starts."""
    done = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=before, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, of 2 MiB and 20 inodes."""
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=20", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_fine_nodes_pass_every_check() -> None:
    facts = nodes({}, {}, {})
    judged = [
        *storage.judge(facts),
        *software.judge(facts),
        *machine.judge(facts, 2),
        *machine.judge_load(facts),
        *machine.judge_limits(facts),
        *gpus.judge(facts, None),
        *gpus.judge_leftover(facts),
        *variables.judge(facts),
    ]
    assert [finding for finding in judged if finding.level != "ok"] == []
    assert len(judged) == 8


def test_a_full_disk_is_an_error_and_cannot_be_written_to(tmpfs: Path) -> None:
    (tmpfs / "data").write_bytes(bytes(1 << 20))
    assert storage.write_mark(tmpfs, "mark", 0) is None
    storage.remove_mark(tmpfs, "mark", 0)
    with suppress(OSError):
        for number in range(20):
            (tmpfs / f"file{number}").touch()
    error = storage.write_mark(tmpfs, "mark", 0)
    disks = storage.gather({storage.SHARED_MEMORY: tmpfs})
    disks[storage.RUN_FOLDER] = {"path": str(tmpfs), "free_bytes": 1 << 40, "free_inodes": None}
    found = storage.judge(nodes({"disks": disks, "write_error": error}, {}))
    assert [(finding.level, finding.node, finding.bad_node) for finding in found] == [
        ("error", "a", True),
        ("error", "a", True),
        ("error", "a", False),
    ]
    assert "got 1 MiB" in found[0].sentence
    assert "10000 free inodes" in found[1].sentence
    assert "No space left on device" in found[2].sentence
    assert not list(tmpfs.glob(".ringmark*"))


def test_a_disk_that_runs_low_is_a_warning() -> None:
    low = {"the run folder": {"path": "/runs", "free_bytes": 5 << 30, "free_inodes": None}}
    finding = one(storage.judge(nodes({"disks": low}, {"disks": low})))
    assert (finding.level, finding.node, "got 5.0 GiB" in finding.sentence) == ("warning", "", True)


def test_a_folder_that_is_not_shared_is_told_by_its_missing_files(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    folders = [shared, shared, own]
    for member, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        assert storage.write_mark(folder, "mark", member) is None
    unseen = {
        member: storage.unseen(folder, "mark", [other for other in range(3) if other != member])
        for member, folder in enumerate(folders)
    }
    finding = one(storage.judge_shared(nodes({}, {}, {}), unseen))
    assert (finding.level, finding.node, finding.bad_node) == ("error", "c", True)
    assert "a does not see those of c" in finding.sentence
    assert one(storage.judge_shared(nodes({}, {}), {0: [], 1: []})).level == "ok"


def test_a_narrowed_mask_is_less_than_was_asked_for() -> None:
    code = "import json; from launch.checks.machine import gather; print(json.dumps(gather()))"
    facts = in_child(code, lambda: os.sched_setaffinity(0, [max(os.sched_getaffinity(0))]))
    finding = one(machine.judge(nodes(facts, {}), asked=2))
    assert (finding.level, finding.node) == ("error", "a")
    assert "expected 2 CPUs as asked for, got 1" in finding.sentence


def test_load_of_others_is_a_warning() -> None:
    assert one(machine.judge_load(nodes({}, {"load": 7.5}))).node == "b"


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [("NOFILE", 256, "got 256; raise it with ulimit -n"), ("NPROC", 100, "ulimit -u"), ("MEMLOCK", 1 << 16, "locked")],
)
def test_a_lowered_limit_is_seen(limit: str, value: int, words: str) -> None:
    code = (
        f"import json, resource as r; r.setrlimit(r.RLIMIT_{limit}, ({value}, {value}));"
        "from launch.checks.machine import gather_limits; print(json.dumps(gather_limits()))"
    )
    limits = FINE["limits"] | {limit.lower(): in_child(code, lambda: None)[limit.lower()]}
    finding = one(machine.judge_limits(nodes({"limits": limits, "rdma": True}, {})))
    assert (finding.level, finding.node) == ("warning", "a")
    assert words in finding.sentence


def test_core_files_in_the_working_folder_are_a_warning() -> None:
    limits = FINE["limits"] | {"core": None}
    assert "ulimit -c 0" in one(machine.judge_limits(nodes({"limits": limits}))).sentence
    assert one(machine.judge_limits(nodes({"limits": limits, "core_pattern": "|/bin/collector"}))).level == "ok"


def test_the_one_node_with_another_version_is_named() -> None:
    old = FINE["versions"] | {"torch": "2.11"}
    finding = one(software.judge(nodes({}, {"versions": old}, {})))
    assert (finding.level, finding.node, finding.bad_node) == ("error", "b", True)
    assert "2.15 on a, c, 2.11 on b" in finding.sentence
    assert one(software.judge(nodes({}, {"versions": old}))).node == ""


def test_versions_are_known_without_importing_torch() -> None:
    code = (
        "import json, sys; from launch.checks.software import versions; found = versions();"
        "print(json.dumps([found, 'torch' in sys.modules]))"
    )
    found, imported = in_child(code, lambda: None)
    assert not imported
    assert found["torch"] == __import__("importlib.metadata").metadata.version("torch")
    assert found["commit"]


@pytest.mark.parametrize(
    ("code", "words"),
    [("import nowhere_to_be_found", "No module named"), ("import time; time.sleep(60)", "longer than")],
)
def test_a_torch_that_fails_or_hangs_is_an_error(code: str, words: str) -> None:
    broken = software.end_import(software.start_import(code), timeout_s=0.5 if "sleep" in code else 20)
    finding = one(software.judge(nodes({}, {"import": broken})))
    assert (finding.level, finding.node, finding.bad_node) == ("error", "b", True)
    assert words in finding.sentence


def test_fewer_gpus_than_requested_are_an_error() -> None:
    lost = {"import": {"seconds": 1.0, "devices": ["GPU"]}}
    finding = one(gpus.judge(nodes({}, lost), None))
    assert (finding.level, finding.node, finding.bad_node) == ("error", "b", True)
    assert "expected 2 GPUs as requested, got 1" in finding.sentence
    assert not one(gpus.judge(nodes({}, {}), 4)).bad_node, "what all lack is the fault of none"
    hidden = {"import": None, "gpus": FINE["gpus"] | {"visible": "1"}}
    assert "got 1 (CUDA_VISIBLE_DEVICES=1, 2 in the node)" in one(gpus.judge(nodes(hidden, {}), None)).sentence


def test_a_process_with_one_of_our_devices_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    devices = [tmp_path / "dev" / f"nvidia{number}" for number in range(2)]
    for device in [*devices, tmp_path / "dev/nvidiactl"]:
        device.touch()
    with devices[1].open() as file, subprocess.Popen(["sleep", "60"], stdin=file) as stale:
        file.close()
        mine = gpus.gather({"SLURM_STEP_GPUS": "1", "SLURM_GPUS_ON_NODE": "1", "PATH": ""}, tmp_path)
        others = gpus.gather({"SLURM_STEP_GPUS": "0"}, tmp_path)
        stale.kill()
    assert [user["pid"] for user in mine["users"]] == [stale.pid]
    assert (mine["count"], mine["asked"], others["users"]) == (2, 1, [])
    finding = one(gpus.judge(nodes({"gpus": mine, "import": None}, {}), None))
    assert (finding.level, finding.node, finding.bad_node) == ("error", "a", True)
    assert f"got {stale.pid} (sleep 60)" in finding.sentence


def program(folder: Path, text: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "nvidia-smi").chmod(0o700)


def test_nvidia_smi_is_asked_for_gpus_and_their_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    rows = "0, GPU-a, 00000000:01:00.0, H100\\n1, GPU-b, 00000000:02:00.0, H100\\n"
    users = "77, GPU-a, python, 900 MiB\\n78, GPU-b, python, [N/A]\\n"
    program(tmp_path, f'case "$1" in --query-gpu=*) printf "{rows}";; *) printf "{users}";; esac')
    found = gpus.gather({"CUDA_VISIBLE_DEVICES": "1"})
    assert (found["count"], [user["pid"] for user in found["users"]]) == (2, [78])
    assert gpus.seen({"gpus": found, "import": None}) == 1


def test_a_broken_driver_is_an_error_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "echo 'Unable to determine the device handle: GPU is lost'; exit 15")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    finding = one(gpus.judge(nodes({"gpus": gpus.gather({}, tmp_path)}, {}), None))
    assert (finding.node, finding.bad_node) == ("a", True)
    assert "GPU is lost" in finding.sentence


def test_a_rank_that_outlived_its_launcher_is_found_and_one_with_a_launcher_is_not() -> None:
    code = (
        "import os, subprocess, sys\n"
        "environment = {**os.environ, 'TORCHELASTIC_RUN_ID': 'x'}\n"
        "rank = subprocess.Popen(['sleep', '60'], env=environment, stdout=subprocess.DEVNULL)\n"
        "print(rank.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        rank = int(launcher.stdout.readline())
        before = {each["pid"] for each in gpus.leftover()}
        launcher.kill()
    try:
        after = gpus.leftover()
    finally:
        os.kill(rank, signal.SIGKILL)
    assert rank not in before
    assert rank in {each["pid"] for each in after}
    facts = nodes({"gpus": FINE["gpus"] | {"leftover": [each for each in after if each["pid"] == rank]}}, {})
    finding = one(gpus.judge_leftover(facts))
    assert (finding.level, finding.node) == ("warning", "a")
    assert f"kill {rank}" in finding.sentence
    assert gpus.LAUNCHERS.search(b"python\0/venv/bin/ringmark\0run\0")
    assert not gpus.LAUNCHERS.search(b"/home/ringmark/bin/python\0-m\0launch.worker\0")


@pytest.mark.parametrize(
    ("environment", "level", "words"),
    [
        ({"NCCL_SOCKET_IFNMAE": "eth0"}, "warning", "did you mean NCCL_SOCKET_IFNAME?"),
        ({"NCCL_ASYNC_ERROR_HANDLING": "1"}, "warning", "expected TORCH_NCCL_ASYNC_ERROR_HANDLING"),
        ({"NCCL_ZQXWV": "1"}, "warning", "check its spelling"),
        ({"GLOO_SOCKET_IFNAME": "ib7"}, "error", "expected one of lo, eth0 in GLOO_SOCKET_IFNAME, got ib7"),
        ({"GLOO_SOCKET_IFNAME": "^lo"}, "error", "got ^lo"),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "error", "got =eth"),
        ({"NCCL_IB_DISABLE": "1", "NCCL_IB_HCA": "mlx5_0"}, "warning", "switches InfiniBand off"),
    ],
)
def test_misspelt_former_and_contradictory_variables(environment: dict[str, str], level: str, words: str) -> None:
    finding = one(variables.judge(nodes({"variables": variables.gather(environment)}, {})))
    assert (finding.level, finding.node) == (level, "a")
    assert words in finding.sentence


def test_right_variables_pass_and_no_secret_is_carried() -> None:
    environment = {
        "NCCL_PSK": "secret",
        "NCCL_SOCKET_IFNAME": "eth,ib",
        "GLOO_SOCKET_IFNAME": "eth0,lo",
        "NCCL_IB_DISABLE": "0",
        "NCCL_IB_HCA": "mlx5_0,mlx5_1",
        "TORCH_NCCL_BLOCKING_WAIT": "1",
        "NCCL_FASTRAK_ANYTHING": "1",
        "HOME": "/root",
    }
    found = variables.gather(environment)
    assert one(variables.judge(nodes({"variables": found}, {}))).level == "ok"
    assert found["NCCL_PSK"] is None
    assert "HOME" not in found
