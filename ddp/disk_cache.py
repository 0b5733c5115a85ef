"""Decoded images in a file on disk, which is mapped into memory: for splits that do not fit into it.

The file's name holds a digest of everything that the images were made from, so what is found under it is right. It is
built under another name, which its builder keeps locked, and gets its own when it is whole: a build that is killed
leaves nothing that could be taken for a whole one, and jobs that build the same file at the same time each use theirs.
"""

import fcntl
import hashlib
import math
import mmap
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddp.context import DistContext
from ddp.decode import decode_together, in_rounds, together
from ddp.mistake import Mistake
from ddp.source import Shape, Split

SUFFIX = ".uint8"
SYNC_BYTES = 2**28
"""What a rank writes before it waits for the disk, so that the last wait, for which all ranks wait, is short."""


class _File:
    """The file of one split, as one rank sees it."""

    def __init__(self, folder: Path, samples: int, stored: Shape) -> None:
        self.folder, self.shape = folder, (samples, *stored)
        self.image_bytes = math.prod(stored)
        self.size_bytes = samples * self.image_bytes
        self.handle = -1
        self.path, self.building = Path(), Path()
        self._digest = hashlib.sha256()
        self._unsynced = 0

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Mistake(
                f"expected a folder for {self.size_bytes} bytes of decoded images "
                f"({self.size_bytes / 2**30:.3g} GiB) in {self.folder}, got: {error.strerror or error}; "
                "make room, choose another with --cache-dir, or use --cache none"
            ) from None

    def identify(self, pieces: Iterator[bytes]) -> Iterator[None]:
        """Take in what the images are made from, piece by piece."""
        for piece in pieces:
            self._digest.update(piece)
            yield

    def find(self) -> bool:
        """Open the whole file if there is one -> True, or an empty, locked one to build."""
        name = f"{'x'.join(map(str, self.shape))}-{self._digest.hexdigest()[:32]}"
        self.path = self.folder / (name + SUFFIX)
        with self._on_disk():
            with suppress(FileNotFoundError):
                self.handle = os.open(self.path, os.O_RDONLY)
                if os.fstat(self.handle).st_size == self.size_bytes:
                    return True
                self.close()
            self.folder.mkdir(parents=True, exist_ok=True)
            mine = f".{os.uname().nodename}.tmp"
            self._sweep(mine)
            linked = False
            while not linked:  # another job may have swept the file away before it was locked
                self.close()
                self.building = self.folder / f"{name}.{uuid.uuid4().hex}{mine}"
                self.handle = os.open(self.building, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                fcntl.flock(self.handle, fcntl.LOCK_EX)
                linked = os.fstat(self.handle).st_nlink > 0
            try:
                os.posix_fallocate(self.handle, 0, self.size_bytes)  # a full disk is found out now, not after an hour
            except OSError:
                self.discard()
                raise
        return False

    def _sweep(self, mine: str) -> None:
        """Remove what killed builds of this machine have left: the lock of a living one is held."""
        for path in self.folder.glob(f"*{mine}"):
            with suppress(OSError):
                handle = os.open(path, os.O_RDWR)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(handle)

    def attach(self, path: str, whole: bool) -> None:
        """Open the file that the first rank of the node has found or begun."""
        with self._on_disk():
            self.handle = os.open(path, os.O_RDONLY if whole else os.O_RDWR)

    def put(self, index: int, image: np.ndarray) -> None:
        """Write one image uint8 [C, H, W]; unlike a write into mapped memory this can report a disk that is full."""
        with self._on_disk():
            os.pwrite(self.handle, image.tobytes(), index * self.image_bytes)
            self._unsynced += self.image_bytes
            if self._unsynced >= SYNC_BYTES:
                os.fdatasync(self.handle)
                self._unsynced = 0

    def commit(self) -> None:
        """Give the file its name, when every rank has written its images."""
        with self._on_disk():
            os.fsync(self.handle)
            self.building.rename(self.path)

    def discard(self) -> None:
        """Remove a file that will not become whole."""
        if self.building.name:
            self.building.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; a mapping of it stays."""
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1

    def images(self) -> Tensor:
        """uint8 [samples, C, H, W], mapped from the file; must not be written to."""
        with self._on_disk():
            memory = mmap.mmap(self.handle, self.size_bytes, access=mmap.ACCESS_READ)
        # Not a private mapping that may be written to: the system would refuse one larger than its memory.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the tensor must not be written to
            return torch.from_numpy(np.frombuffer(memory, dtype=np.uint8).reshape(self.shape))


def images_on_disk(split: Split, stored: Shape, folder: Path, ctx: DistContext) -> Tensor:
    """The images of a split, uint8 [samples, C, H, W], in a file of `folder` that is made unless it is there.

    The ranks of a node share the file and the work. Every rank must call this; all raise Mistake if an image cannot be
    decoded or the file cannot be written.
    """
    assert split.identity is not None
    file = _File(folder, len(split), stored)
    first = ctx.local_rank == 0
    try:
        in_rounds(ctx, file.identify(split.identity() if first else iter(())))
        answers = together(ctx, lambda: _place(file, ctx) if first else None)
        path, whole = next(answer[1:] for answer in answers if answer is not None and answer[0] == ctx.node_rank)
        together(ctx, lambda: None if first else file.attach(path, whole))
        mine = range(0) if whole else range(ctx.local_rank, len(split), ctx.local_world_size)
        decode_together(split, mine, file.put, ctx)
        together(ctx, lambda: file.commit() if first and not whole else None)
        return file.images()
    except BaseException:
        file.discard()
        raise
    finally:
        file.close()


def _place(file: _File, ctx: DistContext) -> tuple[int, str, bool]:
    whole = file.find()
    return ctx.node_rank, str(file.path if whole else file.building), whole
