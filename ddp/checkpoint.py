"""Checkpoints that are whole or not there: written by all ranks together, committed by one rename, checked when read.

A checkpoint is a folder `step-000000042` with `shared.pt` of rank 0, `rank-<k>.pt` of every rank and `MANIFEST.json`,
which tells size and sha256 of each. It is written under another name and renamed when the disk has all of it.
"""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ddp.checkpoint_files import (
    FORMAT,
    LEFTOVER,
    NAME,
    SHARED,
    CheckpointError,
    FileEntry,
    Manifest,
    check_file,
    discard,
    make_folder,
    marked,
    problems,
    rank_file,
    read_manifest,
    real_folders,
    reason,
    step_of,
    step_path,
    sync_folder,
    write_file,
    write_manifest,
)
from ddp.context import DistContext

T = TypeVar("T")


@dataclass(frozen=True)
class Content:
    """What a checkpoint is to hold: tensors, numbers, text, and lists, tuples, sets and dicts of them."""

    shared: Mapping[str, Any]
    """What rank 0 writes for all; not looked at on other ranks."""
    own: Mapping[str, Any]
    """What each rank writes for itself."""
    info: Mapping[str, Any]
    """What rank 0 says about it in the manifest, as JSON: no tuples, no NaN, keys are text."""


def write(
    folder: Path,
    step: int,
    content: Content,
    ctx: DistContext,
    *,
    keep: int = 2,
    protect: Collection[int] = (),
) -> Path:
    """Commit a checkpoint of a step, then remove older ones but the newest `keep` and those in `protect` -> its path.

    Every rank must call this. A step that is there already stays as it is, unless it is damaged: then it is set aside.
    Raises CheckpointError on all ranks if any failed; the checkpoints before are left as they were.
    """
    if keep < 1:
        raise ValueError(f"expected at least 1 checkpoint to keep, got {keep}")
    final = step_path(folder, step)
    failed = f"the checkpoint {final} was not written"
    name = _agree(ctx, failed, folder, lambda: _begin(final) if ctx.is_main else None)[0]
    if name is None:
        return final
    temporary = folder / name
    try:
        parts = _agree(ctx, failed, folder, lambda: _write_own(temporary, content, ctx))
        files = {name: FileEntry(**entry) for part in parts for name, entry in part.items()}
        manifest = Manifest(
            format=FORMAT,
            step=step,
            world_size=ctx.world_size,
            torch_version=str(torch.__version__),
            info=dict(content.info),
            files=files,
        )
        _agree(ctx, failed, folder, lambda: _commit(temporary, final, manifest) if ctx.is_main else None)
    except BaseException:
        if ctx.is_main:  # what cannot be removed now, `sweep` removes
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    failed = f"the checkpoint {final} was written, but older ones could not be removed"
    _agree(ctx, failed, folder, lambda: _prune(final, keep, protect) if ctx.is_main else None)
    return final


def _agree(ctx: DistContext, failed: str, folder: Path, work: Callable[[], T]) -> list[T]:
    """Do work on every rank -> its results in rank order, or CheckpointError on all ranks if it failed on any."""
    outcome: tuple[T | None, str | None]
    cause: Exception | None = None
    try:
        outcome = (work(), None)
    except Exception as error:
        outcome, cause = (None, reason(error, folder)), error
    try:
        outcomes = ctx.gather(outcome)
        for rank, (_, complaint) in enumerate(outcomes):
            if complaint is not None:
                raise CheckpointError(f"{failed}: rank {rank}: {complaint}") from cause
    finally:
        del cause  # whose traceback holds this frame: a cycle, which would keep the process group after its end
    return [value for value, _ in outcomes]


def _begin(final: Path) -> str | None:
    """Make the folder to write into -> its name; None if the checkpoint is there and good."""
    make_folder(final.parent)
    if final.exists():
        try:
            verify(final)
        except CheckpointError:
            os.rename(final, marked(final, "damaged"))  # set aside, not removed: the fault may be the reading
        else:
            return None
    temporary = marked(final, "tmp")
    temporary.mkdir()
    return temporary.name


def _write_own(temporary: Path, content: Content, ctx: DistContext) -> dict[str, dict[str, Any]]:
    """Write this rank's files -> what they must be, by name."""
    mine = {rank_file(ctx.rank): ("own", content.own)}
    if ctx.is_main:
        mine[SHARED] = ("shared", content.shared)
    for place, value in mine.values():
        for problem in problems(dict(value), place):
            raise CheckpointError(f"expected only what can be loaded back, got: {problem}")
    return {name: asdict(write_file(temporary / name, value)) for name, (_, value) in mine.items()}


def _commit(temporary: Path, final: Path, manifest: Manifest) -> None:
    """The manifest comes last and the name after it: whatever bears the name is complete, after a power failure too."""
    write_manifest(temporary, manifest)
    sync_folder(temporary)
    os.rename(temporary, final)
    sync_folder(final.parent)


def _prune(newest: Path, keep: int, protect: Collection[int]) -> None:
    """Remove old checkpoints; later ones than the newest, which a run that went back left, are not counted."""
    paths = find(newest.parent)
    for path in paths[paths.index(newest) + keep :]:
        if step_of(path) not in protect:
            discard(path)


def find(folder: Path) -> list[Path]:
    """Committed checkpoints, newest first, whether they are good or not."""
    return sorted(real_folders(folder, NAME), key=lambda path: step_of(path) or 0, reverse=True)


def verify(path: Path) -> Manifest:
    """Check presence, size and sha256 of every file, loading none. Raises CheckpointError for the first that fails."""
    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        check_file(path / name, expected)
    return manifest


def load(path: Path, rank: int) -> tuple[Manifest, dict[str, Any], dict[str, Any] | None]:
    """Verify a checkpoint and load it to the CPU -> manifest, what all share, and the rank's own; None if it had none.

    Raises CheckpointError.
    """
    manifest = verify(path)
    shared = _load_file(path / SHARED)
    return manifest, shared, _load_file(path / rank_file(rank)) if rank < manifest.world_size else None


def _load_file(file: Path) -> dict[str, Any]:
    """Load one file, weights only: it can hold data, but no code."""
    try:
        loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise CheckpointError(
            f"{file}: expected what torch loads as weights only, got {reason(error, file.parent)}"
        ) from error
    return loaded


def newest_good(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies, reporting the newer ones that do not; None if there are no checkpoints.

    Raises CheckpointError if there are some and none is good, so that nobody silently starts from zero.
    """
    paths = find(folder)
    for path in paths:
        try:
            verify(path)
        except CheckpointError as error:
            report(f"checkpoint refused: {error}")
        else:
            return path
    if paths:
        raise CheckpointError(
            f"expected a good checkpoint in {folder}, got {len(paths)} that are all damaged; "
            "restore one, or start anew in another folder"
        )
    return None


def sweep(folder: Path) -> None:
    """Remove what dead runs left half written or half removed. For rank 0, before training starts."""
    for path in real_folders(folder, LEFTOVER):
        shutil.rmtree(path)
