"""Checkpoints on real ranks and real disks: whole or not there, whatever is killed, full or damaged."""

import ctypes
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddp import checkpoint
from ddp.checkpoint import CheckpointError, Content, find, load, newest_good, sweep, write
from ddp.context import DistContext, process_group
from ddp.env import read_rank
from tests import forks
from tests.ranks import run_ranks

KILLS = 100
STATE_FLOATS = 1_300_000  # about 5 MB


@pytest.fixture
def ctx() -> Iterator[DistContext]:
    with process_group(read_rank({}), device=torch.device("cpu"), timeout_s=20) as ctx:
        yield ctx


def content(step: int, rank: int = 0, floats: int = 100) -> Content:
    """A state that tells its step in every number of it."""
    shared = {"step": step, "weights": torch.full((floats,), float(step)), "nested": [{"a": (1, None, "é", b"\xff")}]}
    return Content(shared=shared, own={"rank": rank, "step": step}, info={"samples": step * 8})


def assert_whole(path: Path, step: int, rank: int = 0) -> None:
    manifest, shared, own = load(path, rank)
    assert (manifest.step, manifest.info) == (step, {"samples": step * 8})
    assert shared["step"] == step
    assert torch.all(shared["weights"] == step)
    assert own == {"rank": rank, "step": step}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_ranks_write_comes_back_to_each(tmp_path: Path, ranks: int) -> None:
    folder = tmp_path / "run" / "checkpoints"
    paths = run_ranks(lambda ctx: write(folder, 7, content(7, ctx.rank), ctx), ranks)
    assert paths == [folder / "step-000000007"] * ranks
    for rank in range(ranks):
        assert_whole(paths[0], 7, rank)
    manifest, shared, own = load(paths[0], ranks)
    assert own is None, "a rank that was not there has a state of its own"
    assert shared["nested"] == [{"a": (1, None, "é", b"\xff")}]
    assert (manifest.world_size, manifest.torch_version) == (ranks, str(torch.__version__))
    assert set(manifest.files) == {"shared.pt", *(f"rank-{rank}.pt" for rank in range(ranks))}
    assert names(folder) == ["step-000000007"]


def before_each_change(before: Callable[[str, Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `before(function, path)` ahead of each call that changes what a disk holds for good."""
    busy = False

    def watch(function: str) -> None:
        original = getattr(os, function)

        def changed(*args: Any, **kwargs: Any) -> None:
            nonlocal busy
            if not busy:
                busy = True
                target = os.readlink(f"/proc/self/fd/{args[0]}") if function == "fsync" else args[0]
                before(function, Path(target))
                busy = False
            original(*args, **kwargs)

        monkeypatch.setattr(os, function, changed)

    for function in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
        watch(function)


def test_files_reach_the_disk_before_their_name_and_the_name_before_older_ones_go(
    tmp_path: Path, ctx: DistContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        write(tmp_path, step, content(step), ctx)
    log: list[str] = []
    sizes: dict[str, int] = {}

    def note(function: str, path: Path) -> None:
        log.append(f"{function} {re.sub('-[0-9a-f]{8}$', '', path.name)}")
        if function == "fsync" and path.is_file():
            sizes[path.name] = path.stat().st_size

    before_each_change(note, monkeypatch)
    path = write(tmp_path, 3, content(3), ctx)
    assert sizes == {file.name: file.stat().st_size for file in path.iterdir()}, "something was written after fsync"
    parent, new, old = tmp_path.name, "step-000000003.tmp", "step-000000001"
    assert log[:7] == [
        f"mkdir {new}", "fsync rank-0.pt", "fsync shared.pt", "fsync MANIFEST.json", f"fsync {new}", f"rename {new}",
        f"fsync {parent}",
    ]  # fmt: skip
    assert log[7:9] == [f"rename {old}", f"fsync {parent}"]
    assert {entry.split()[0] for entry in log[9:]} == {"unlink", "rmdir"}


def test_a_power_failure_between_any_two_changes_leaves_the_old_or_the_new(
    tmp_path: Path, ctx: DistContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    for step in (1, 2):
        write(folder, step, content(step), ctx)
    copies: list[Path] = []
    inodes = {file.stat().st_ino for file in folder.rglob("*")}

    def fail(function: str, path: Path) -> None:
        copy = tmp_path / f"crash-{len(copies)}"
        shutil.copytree(folder, copy)
        unsynced = {file.stat().st_ino for file in folder.rglob("*") if file.is_file()} - inodes
        for file in folder.rglob("*"):
            if file.stat().st_ino in unsynced:  # its name may have reached the disk, its bytes have not
                os.truncate(copy / file.relative_to(folder), file.stat().st_size // 2)
        copies.append(copy)
        if function == "fsync":
            inodes.add(path.stat().st_ino)

    before_each_change(fail, monkeypatch)
    write(folder, 3, content(3), ctx)
    monkeypatch.undo()
    found = []
    for copy in copies:
        path = newest_good(copy, lambda text: pytest.fail(f"a committed checkpoint is damaged: {text}"))
        assert path is not None
        found.append(checkpoint.step_of(path))
        assert_whole(path, found[-1] or 0)
    assert found == sorted(found), "a later crash leaves an older state"
    assert set(found) == {2, 3}
    assert len(found) >= 12


def write_until_killed(folder: Path, pipe: int) -> None:
    """In the child: go on from the newest checkpoint, and tell each step once it is committed."""
    torch.set_num_threads(1)
    with process_group(read_rank({}), device=torch.device("cpu"), timeout_s=20) as ctx:
        sweep(folder)
        newest = newest_good(folder, print)
        step = 0 if newest is None else checkpoint.step_of(newest) or 0
        os.write(pipe, f"{step}\n".encode())
        while True:
            step += 1
            write(folder, step, content(step, floats=STATE_FLOATS), ctx)
            os.write(pipe, f"{step}\n".encode())


def _seconds_of_a_commit(folder: Path) -> float:
    reader, pipe = os.pipe()
    writer = forks.start(write_until_killed, folder, pipe)
    os.close(pipe)
    with open(reader) as told:
        told_s = [time.monotonic() for _ in range(5) if told.readline()]
    writer.kill()
    writer.join()
    return (told_s[-1] - told_s[1]) / 3


@pytest.mark.timeout(400)
def test_a_hundred_kills_lose_no_step_that_was_reported_committed(tmp_path: Path) -> None:
    commit_s = _seconds_of_a_commit(tmp_path / "timed")
    dice, torn, newest, folder = random.Random(0), 0, 0, tmp_path / "killed"
    for _ in range(KILLS):
        reader, pipe = os.pipe()
        writer = forks.start(write_until_killed, folder, pipe)
        os.close(pipe)
        told = os.read(reader, 100)
        assert int(told.split()[0]) == newest, "the writer did not start from what the last one left"
        time.sleep(dice.uniform(0, 2.5 * commit_s))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        while more := os.read(reader, 10_000):
            told += more
        os.close(reader)
        committed = int(told.split()[-1])
        torn += folder.exists() and any(".tmp-" in name for name in names(folder))
        path = newest_good(folder, lambda text: pytest.fail(f"a committed checkpoint is damaged: {text}"))
        newest = 0 if path is None else checkpoint.step_of(path) or 0
        assert committed <= newest <= committed + 1
        if path is not None:
            assert_whole(path, newest)
    assert torn >= KILLS // 10, f"only {torn} of {KILLS} kills met a write"
    assert newest >= KILLS // 5
    print(f"{KILLS} kills, {torn} in the middle of a write, {newest} steps committed")


def test_one_rank_that_fails_makes_all_raise_and_leaves_what_was_there(tmp_path: Path) -> None:
    def work(ctx: DistContext) -> str:
        write(tmp_path, 1, content(1, ctx.rank), ctx)
        broken = content(2, ctx.rank)
        if ctx.rank == 1:
            broken = Content(broken.shared, {"best": {"score": np.float64(1)}}, broken.info)
        with pytest.raises(CheckpointError) as caught:
            write(tmp_path, 2, broken, ctx)
        ctx.barrier()
        return str(caught.value)

    texts = run_ranks(work, 3)
    assert len(set(texts)) == 1
    assert "rank 1: " in texts[0]
    assert "own['best']['score'] is a numpy.float64" in texts[0]
    assert names(tmp_path) == ["step-000000001"]
    assert_whole(tmp_path / "step-000000001", 1, 2)


def limit_file_size(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))


def small_disk(folder: Path) -> None:
    """Mount 1 MB of memory on `folder`, seen by this process alone and gone with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    private = (None, b"/", None, 1 << 18 | 1 << 14, None)
    memory = (b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=1m")
    if libc.unshare(0x20000) or libc.mount(*private) or libc.mount(*memory):
        os.write(2, b"cannot mount here\n")
        raise PermissionError(ctypes.get_errno(), "cannot mount")


@pytest.mark.parametrize(
    ("fill", "says"),
    [(small_disk, r"No space left on device, \d+ bytes are free in"), (limit_file_size, "File too large")],
)
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path, fill: Callable[[Path], None], says: str) -> None:
    def work(ctx: DistContext) -> str:
        try:
            fill(tmp_path)
        except PermissionError as error:
            return f"skip: {error}"
        write(tmp_path, 1, content(1), ctx)
        with pytest.raises(CheckpointError) as caught:
            write(tmp_path, 2, content(2, floats=STATE_FLOATS), ctx)
        assert names(tmp_path) == ["step-000000001"]
        assert_whole(tmp_path / "step-000000001", 1)
        write(tmp_path, 3, content(3), ctx)
        assert newest_good(tmp_path, pytest.fail) == tmp_path / "step-000000003"
        return str(caught.value)

    text = run_ranks(work, 1)[0]
    if text.startswith("skip"):
        pytest.skip(text)
    assert re.search(f"step-000000002 was not written: rank 0: shared.pt could not be written: .*{says}", text), text


def test_pruning_keeps_the_newest_and_the_protected(tmp_path: Path, ctx: DistContext) -> None:
    for step in range(1, 7):
        write(tmp_path, step, content(step), ctx, keep=2, protect={2})
    assert names(tmp_path) == ["step-000000002", "step-000000005", "step-000000006"]
    write(tmp_path, 4, content(4), ctx, keep=1)
    assert names(tmp_path) == [f"step-00000000{step}" for step in (4, 5, 6)], "what was written now must stay"


def test_a_step_that_is_there_stays_unless_it_is_damaged(tmp_path: Path, ctx: DistContext) -> None:
    path = write(tmp_path, 1, content(1), ctx)
    before = {file: (file.stat().st_ino, file.read_bytes()) for file in path.iterdir()}
    assert write(tmp_path, 1, content(999), ctx) == path
    assert {file: (file.stat().st_ino, file.read_bytes()) for file in path.iterdir()} == before
    os.truncate(path / "shared.pt", 10)
    assert write(tmp_path, 1, content(1), ctx) == path
    assert_whole(path, 1)
    assert [name[:22] for name in names(tmp_path)] == ["step-000000001", "step-000000001.damaged"]


def test_sweep_removes_leftovers_only_and_follows_no_link(tmp_path: Path, ctx: DistContext) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    write(folder, 1, content(1), ctx)
    shutil.copytree(folder / "step-000000001", elsewhere)
    for name in ("step-000000002.tmp-0123abcd", "step-000000001.trash-0123abcd"):
        shutil.copytree(elsewhere, folder / name)
    others = ["notes", "step-000000001.damaged-0123abcd", "step-3.tmp-0123abcd"]
    for name in others:
        (folder / name).mkdir()
    links = ["step-000000004.tmp-0123abcd", "step-000000005"]
    for name in links:
        (folder / name).symlink_to(elsewhere)
    assert find(folder) == [folder / "step-000000001"]
    sweep(folder)
    assert names(folder) == sorted(["step-000000001", *others, *links])
    assert len(names(elsewhere)) == 3
    sweep(tmp_path / "absent")
