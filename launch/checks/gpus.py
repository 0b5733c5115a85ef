"""GPUs that are there against those that were asked for, and processes that others left on them."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.checks.finding import Facts, Finding, everywhere, ok

SMI_TIMEOUT_S = 10.0
"""nvidia-smi hangs when a GPU has fallen off the bus."""
GPU_FIELDS = ("index", "uuid", "pci.bus_id", "name")
USER_FIELDS = ("pid", "gpu_uuid", "process_name", "used_memory")
TAGS = (b"RINGMARK_RANK_SOCKET=", b"TORCHELASTIC_RUN_ID=")
"""What the environment of a rank has, and that of its launcher has not."""
LAUNCHERS = re.compile(
    rb"(^|[\0/])(ringmark|torchrun)\0|\0-m\0(launch|launch\.(agent|node|task|batch)|torch\.distributed\.(run|launch))\0"
)
"""Command lines of launchers, whose words end with a zero byte; a folder of such a name is none."""
INIT = frozenset({"systemd", "init"})


def smi(query: str, fields: Sequence[str], program: str = "nvidia-smi") -> list[dict[str, str]] | str | None:
    """Rows of an nvidia-smi query; a text if it fails; None without the program."""
    try:
        done = subprocess.run(
            [program, f"--query-{query}={','.join(fields)}", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SMI_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nvidia-smi did not answer within {SMI_TIMEOUT_S:g} s"
    except OSError:
        return None
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["no words"]
        return f"nvidia-smi ended with exit code {done.returncode}: {last[0][:200]}"
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def gather(environ: Mapping[str, str], root: Path = Path("/")) -> dict[str, Any]:
    """GPUs and their users; `root` is where dev and proc are."""
    devices = sorted(path for path in (root / "dev").glob("nvidia[0-9]*") if path.name[6:].isdecimal())
    cards = smi("gpu", GPU_FIELDS)
    driver = [path.name for path in (root / "proc/driver/nvidia/gpus").glob("*")]
    asked = environ.get("SLURM_GPUS_ON_NODE", "")
    return {
        "cards": cards if isinstance(cards, list) else None,
        "error": cards if isinstance(cards, str) and devices else None,
        "count": len(cards) if isinstance(cards, list) else max(len(devices), len(driver)),
        "visible": environ.get("CUDA_VISIBLE_DEVICES"),
        "step": environ.get("SLURM_STEP_GPUS"),
        "asked": int(asked) if asked.isdecimal() else None,
        "users": _users(environ, cards, devices),
        "leftover": leftover(),
    }


def _users(
    environ: Mapping[str, str], cards: list[dict[str, str]] | str | None, devices: Sequence[Path]
) -> list[dict[str, Any]]:
    """Processes on the GPUs that are ours: by nvidia-smi, else by who has their device files open."""
    visible = _indices(environ.get("CUDA_VISIBLE_DEVICES"))
    if isinstance(cards, list):
        ours = {card["uuid"] for card in cards if visible is None or card["index"] in visible}
        rows = smi("compute-apps", USER_FIELDS)
        return [
            {
                "pid": int(row["pid"]),
                "command": row["process_name"],
                "on": row["gpu_uuid"],
                "memory": row["used_memory"],
            }
            for row in (rows if isinstance(rows, list) else [])
            if row["gpu_uuid"] in ours and row["pid"].isdecimal()
        ]
    numbers = _indices(environ.get("SLURM_STEP_GPUS")) or visible
    return holders([path for path in devices if numbers is None or path.name[6:] in numbers])


def _indices(text: str | None) -> set[str] | None:
    """Device numbers of a list; None if there is none, or if it names devices otherwise."""
    words = {word.strip() for word in text.split(",")} if text else set()
    return words if words and all(word.isdecimal() for word in words) else None


def holders(devices: Sequence[Path]) -> list[dict[str, Any]]:
    """Other processes that have one of the files open, as far as this user may see."""
    paths, found = {str(path) for path in devices}, []
    for process in _processes() if paths else ():
        if int(process.name) == os.getpid():
            continue
        try:
            held = sorted({os.readlink(link.path) for link in os.scandir(process / "fd")} & paths)
        except OSError:  # another user's, or it has ended
            continue
        if held:
            found.append({"pid": int(process.name), "command": _command(process), "on": held[0], "memory": None})
    return found


def leftover() -> list[dict[str, Any]]:
    """Ranks whose launcher is gone: started by one, as their environment shows, and now below no other process."""
    tagged = {}
    for process in _processes():
        try:
            if any(word.startswith(TAGS) for word in (process / "environ").read_bytes().split(b"\0")):
                tagged[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = []
    for pid in tagged:
        top = pid
        while tagged[top] in tagged:
            top = tagged[top]
        if _is_init(tagged[top]) and not LAUNCHERS.search(_argv(top)):
            found.append({"pid": pid, "command": _command(Path(f"/proc/{pid}"))})
    return found


def _processes() -> list[Path]:
    return sorted(path for path in Path("/proc").iterdir() if path.name.isdecimal())


def _argv(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _command(process: Path) -> str:
    return _argv(int(process.name)).replace(b"\0", b" ").decode(errors="replace").strip()[:80]


def _is_init(pid: int) -> bool:
    """Whether a process is one that takes in orphans, and no launcher that is the first process of a container."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        name = ""
    return (pid == 1 and not LAUNCHERS.search(_argv(1))) or name in INIT


def seen(facts: Facts) -> int:
    """GPUs that a rank on this node would see: by torch if it was asked, else by what the driver shows."""
    imported, gpus = facts["import"], facts["gpus"]
    if imported and "devices" in imported:
        return len(imported["devices"])
    count: int = gpus["count"]
    visible = gpus["visible"]
    return count if visible is None else min(count, len([word for word in visible.split(",") if word.strip()]))


def judge(nodes: Sequence[Facts], requested: int | None) -> list[Finding]:
    """GPUs of each node. `requested` is how many each should have, None for what its job was given."""
    found: dict[str, list[Finding]] = {}
    for facts in nodes:
        gpus, own = facts["gpus"], []
        wanted = gpus["asked"] if requested is None else requested
        if gpus["error"]:
            own.append(f"expected nvidia-smi to work, got: {gpus['error']}; have the node looked at")
        elif wanted is not None and seen(facts) < wanted:
            own.append(
                f"expected {wanted} GPUs as requested, got {seen(facts)} (CUDA_VISIBLE_DEVICES={gpus['visible']}, "
                f"{gpus['count']} in the node); check the job's GPU request and the driver"
            )
        own += [
            f"expected no process on the GPUs, got {user['pid']} ({user['command']}) on {user['on']}"
            f"{', ' + user['memory'] if user['memory'] else ''}; end it, or leave the node out"
            for user in gpus["users"]
        ]
        found[facts["node"]] = [
            Finding(level="error", check="GPUs", node=facts["node"], sentence=sentence, bad_node=True)
            for sentence in own
        ]
    counts = sorted({seen(facts) for facts in nodes})
    passed = f"{' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} on each node, without other processes"
    return everywhere(nodes, found, ok("GPUs", passed))


def judge_leftover(nodes: Sequence[Facts]) -> list[Finding]:
    """Ranks that outlived their launcher."""
    found = {}
    for facts in nodes:
        pids = [str(rank["pid"]) for rank in facts["gpus"]["leftover"]]
        sentence = (
            f"expected no ranks without a launcher, got {len(pids)}, such as {pids[0]} "
            f"({facts['gpus']['leftover'][0]['command']}); kill {' '.join(pids[:20])}"
            if pids
            else ""
        )
        found[facts["node"]] = (
            [Finding(level="warning", check="leftovers", node=facts["node"], sentence=sentence)] if pids else []
        )
    return everywhere(nodes, found, ok("leftovers", "no ranks of earlier launches"))
