"""Disks: room and inodes, a run folder that can be written to, and that all nodes share."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from launch.checks.finding import Facts, Finding, Level, everywhere, gib, ok

TMP, SHARED_MEMORY, RUN_FOLDER = "/tmp", "/dev/shm", "the run folder"
LEAST_BYTES: Mapping[str, tuple[int, int]] = {
    RUN_FOLDER: (1 << 30, 10 << 30),
    TMP: (100 << 20, 1 << 30),
    SHARED_MEMORY: (128 << 20, 1 << 30),
}
"""Free bytes below which there is an error, or a warning."""
LEAST_INODES = (1_000, 10_000)
USES = {
    RUN_FOLDER: "checkpoints and logs go there",
    TMP: "compilers and sockets need it",
    SHARED_MEMORY: "loader processes and NCCL exchange data there; a container needs --shm-size or --ipc=host",
}
MARK_PREFIX = ".ringmark-doctor-"


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return folder if folder.is_dir() else existing(folder.parent)


def gather(places: Mapping[str, Path]) -> dict[str, dict[str, str | int | None]]:
    """Free bytes and free inodes by place; None for inodes where the file system does not count them."""
    found: dict[str, dict[str, str | int | None]] = {}
    for name, path in places.items():
        try:
            state = os.statvfs(path)
        except OSError as error:
            found[name] = {"path": str(path), "error": error.strerror}
            continue
        free_bytes, inodes = state.f_bavail * state.f_frsize, state.f_favail if state.f_files else None
        found[name] = {"path": str(path), "free_bytes": free_bytes, "free_inodes": inodes}
    return found


def write_mark(folder: Path, mark: str, member: int, replace: Callable[[Path, Path], None] = os.replace) -> str | None:
    """Write this node's file for the others to see, as a checkpoint is written -> why it failed, or None."""
    path = folder / f"{MARK_PREFIX}{mark}-{member}"
    try:
        with path.with_suffix(".tmp").open("x", encoding="ascii") as file:
            file.write(mark)
            file.flush()
            os.fsync(file.fileno())
        replace(path.with_suffix(".tmp"), path)
    except OSError as error:
        with suppress(OSError):
            path.with_suffix(".tmp").unlink()
        return error.strerror or str(error)
    return None


def unseen(folder: Path, mark: str, members: Sequence[int]) -> list[int]:
    """Which nodes' files are not to be seen from here."""
    missing = []
    for member in members:
        try:
            if (folder / f"{MARK_PREFIX}{mark}-{member}").read_text(encoding="ascii") != mark:
                missing.append(member)
        except OSError:
            missing.append(member)
    return missing


def remove_mark(folder: Path, mark: str, member: int) -> None:
    """Undo `write_mark`."""
    with suppress(OSError):
        (folder / f"{MARK_PREFIX}{mark}-{member}").unlink()


def judge(nodes: Sequence[Facts]) -> list[Finding]:
    """Room on each node, and whether the run folder can be written to."""
    found = {facts["node"]: [*_room(facts), *_writing(facts)] for facts in nodes}
    return everywhere(nodes, found, ok("disk", f"room in the run folder, {TMP} and {SHARED_MEMORY}"))


def _room(facts: Facts) -> list[Finding]:
    findings = []
    for name, state in facts["disks"].items():
        own = name != RUN_FOLDER  # the run folder is the cluster's, not the node's
        place = name if name == state["path"] else f"{name} {state['path']}"
        if "error" in state:
            sentence = f"expected {place}, got: {state['error']}; {USES[name]}"
            findings.append(Finding(level="error", check="disk", node=facts["node"], sentence=sentence, bad_node=own))
            continue
        for what, free, (bad, low), text in (
            ("free", state["free_bytes"], LEAST_BYTES[name], gib),
            ("free inodes", state["free_inodes"], LEAST_INODES, str),
        ):
            if free is not None and free < low:
                sentence = f"expected {text(low)} {what} in {place}, got {text(free)}; make room: {USES[name]}"
                level: Level = "error" if free < bad else "warning"
                findings.append(
                    Finding(
                        level=level, check="disk", node=facts["node"], sentence=sentence, bad_node=own and free < bad
                    )
                )
    return findings


def _writing(facts: Facts) -> list[Finding]:
    if facts["write_error"] is None:
        return []
    sentence = (
        f"expected to write, sync and rename a file in the run folder {facts['disks'][RUN_FOLDER]['path']}, "
        f"got: {facts['write_error']}; choose a folder that all nodes can write to"
    )
    return [Finding(level="error", check="disk", node=facts["node"], sentence=sentence)]


def judge_shared(nodes: Sequence[Facts], unseen_by: Mapping[int, Sequence[int]]) -> list[Finding]:
    """Whether every node sees what the others wrote; `unseen_by` maps members to those whose files they do not see."""
    names = {facts["member"]: facts["node"] for facts in nodes}
    wrote = {facts["member"] for facts in nodes if facts["write_error"] is None}
    blind = {member: sorted(wrote & set(missing)) for member, missing in unseen_by.items() if wrote & set(missing)}
    if not blind:
        return [ok("shared folder", "every node sees the files of every other")]
    path = nodes[0]["disks"][RUN_FOLDER]["path"]
    parts = ", ".join(
        f"{names[member]} does not see those of {_names(names, blind[member])}" for member in sorted(blind)
    )
    sentence = (
        f"expected {path} to be one folder for all nodes, got separate ones: {parts}; "
        "choose a folder of a shared file system with --run-dir"
    )
    # A node that all others miss, and that misses all others, is the one without the mount.
    alone = [
        one for one in blind if len(nodes) > 2 and all(one in blind.get(other, ()) for other in names if other != one)
    ]
    node = names[alone[0]] if len(alone) == 1 else ""
    return [Finding(level="error", check="shared folder", node=node, sentence=sentence, bad_node=bool(node))]


def _names(names: Mapping[int, str], members: Sequence[int]) -> str:
    return ", ".join(names[member] for member in members)
