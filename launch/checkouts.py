"""Work trees of two commits, for as long as a comparison needs them."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.argv import UsageError
from launch.torchrun import ROOT

PREFIX = "ringmark-commits-"
LOCK = "lock"
"""Held by the process that uses a folder; where nobody holds it, a comparison was killed."""


@contextlib.contextmanager
def checkouts(names: Sequence[str]) -> Iterator[tuple[Path, ...]]:
    """A work tree of each commit, removed at the end. Raises UsageError for what is no commit."""
    hashes = [_git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") for name in names]
    for name, found in zip(names, hashes, strict=True):
        if found is None:
            raise UsageError(f"expected two commits of the repository of {ROOT.name}, got {name!r}; see git log")
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, _locked(Path(folder)):
        trees = tuple(Path(folder) / str(place) for place in range(len(names)))
        try:
            for tree, found in zip(trees, hashes, strict=True):
                if _git("worktree", "add", "--detach", str(tree), str(found)) is None:
                    raise UsageError(f"expected git to check out {found}, got an error; see git worktree list")
            yield trees
        finally:
            for tree in trees:
                _git("worktree", "remove", "--force", str(tree))


def remove_abandoned() -> None:
    """Remove what comparisons left that were killed, and what git knows of it."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), lock.open("r+") as file:  # in use, somebody else's, or just being removed
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent)
    _git("worktree", "prune")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which nobody ever sees free while this lasts."""
    with (folder / f"{LOCK}.new").open("x") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.rename(folder / f"{LOCK}.new", folder / LOCK)
        yield


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
