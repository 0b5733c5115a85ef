"""The files of a checkpoint: written to last, named by a manifest, and checked before anything in them is loaded."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

MANIFEST, SHARED = "MANIFEST.json", "shared.pt"
FORMAT = 1
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
NESTED = (list, tuple, dict, set, OrderedDict, Counter)
TENSORS = (Tensor, nn.Parameter)
LONGEST_INT_BITS, DEEPEST = 2039, 64  # torch's weights-only loader knows integers of 255 bytes at most
NAME = re.compile(r"step-(\d{9,})")
LEFTOVER = re.compile(NAME.pattern + r"\.(tmp|trash)-[0-9a-f]{8}")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not what was written; one sentence names the file and what is wrong."""


@dataclass(frozen=True)
class FileEntry:
    """What one file of a checkpoint must be."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds and where it comes from."""

    format: int
    step: int
    world_size: int
    torch_version: str
    info: dict[str, Any]
    """What the caller said about it, as JSON."""
    files: dict[str, FileEntry]


def rank_file(rank: int) -> str:
    """Name of the file that one rank writes."""
    return f"rank-{rank}.pt"


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, once it is committed."""
    return folder / f"step-{step:09d}"


def step_of(path: Path) -> int | None:
    """The step that a committed checkpoint's name tells; None if it is not such a name."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def marked(path: Path, mark: str) -> Path:
    """A name beside `path` that nobody else has and that is not taken for a checkpoint."""
    return path.with_name(f"{path.name}.{mark}-{secrets.token_hex(4)}")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they survive a power failure."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def real_folders(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Folders in `folder` with such a name; links are left alone, since what they lead to is not ours."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def discard(path: Path) -> None:
    """Remove a committed checkpoint; its name goes first, for good, so that half of it is never taken for a whole."""
    trash = marked(path, "trash")
    os.rename(path, trash)
    sync_folder(path.parent)
    shutil.rmtree(trash)


def problems(value: Any, place: str, depth: int = 0) -> Iterator[str]:
    """What in a value torch's weights-only loader would refuse or lose, each with its place: `shared['best']`."""
    kind = type(value)  # not isinstance: numpy.float64 is a float and torch.__version__ a str, and neither loads
    if depth > DEEPEST:
        yield f"{place} is nested deeper than {DEEPEST} levels or holds itself"
    elif kind in (dict, OrderedDict, Counter):
        for key, item in value.items():
            yield from problems(key, f"{place}: the key {key!r}", depth + 1)
            yield from problems(item, f"{place}[{key!r}]", depth + 1)
    elif kind in NESTED:
        for position, item in enumerate(value):
            yield from problems(item, f"{place}[{position}]", depth + 1)
    elif kind in TENSORS and value.is_meta:
        yield f"{place} is a tensor without data (device meta)"
    elif kind is int and value.bit_length() > LONGEST_INT_BITS:
        yield f"{place} is an integer of {value.bit_length()} bits, more than {LONGEST_INT_BITS}"
    elif kind not in PLAIN + TENSORS:
        yield f"{place} is a {kind.__module__}.{kind.__qualname__}; make it a tensor, number, text, list or dict"
    if kind in (OrderedDict, *TENSORS):  # they are saved with their attributes, such as a state dict's _metadata
        for name, item in vars(value).items():
            yield from problems(item, f"{place}.{name}", depth + 1)


class _Recorder:
    """Writes to a file and hashes what should be there; an error is kept, since torch.save would lose its number."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size_bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`, unless there was an error before."""
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size_bytes += len(view)
        rest = view
        try:
            while self.error is None and len(rest):
                rest = rest[self.file.write(rest) :]  # one call writes 2 GiB at most
        except OSError as error:
            self.error = error
        return len(view)

    def flush(self) -> None:
        """Nothing to do: the file has no buffer."""


def write_file(path: Path, content: bytes | Mapping[str, Any]) -> FileEntry:
    """Write a new file, bytes or a dict by torch.save, and wait until the disk has it. Raises CheckpointError."""
    try:
        with path.open("xb", buffering=0) as file:
            recorder = _Recorder(file)
            if isinstance(content, bytes):
                recorder.write(content)
            else:
                torch.save(dict(content), cast(IO[bytes], recorder))
            if recorder.error is not None:
                raise recorder.error
            os.fsync(file.fileno())
    except Exception as error:
        raise CheckpointError(f"{path.name} could not be written: {reason(error, path.parent.parent)}") from error
    return FileEntry(recorder.size_bytes, recorder.digest.hexdigest())


def reason(error: Exception, folder: Path) -> str:
    """An error in words, on one line; with the free space of the disk in bytes if that is the matter."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        return f"{error.strerror}, {shutil.disk_usage(there).free} bytes are free in {there}"
    text = " ".join(str(error).split())
    return text if isinstance(error, CheckpointError | OSError) else f"{type(error).__name__}: {text}"


def render(body: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest, with the sha256 of all the rest of it. Raises CheckpointError if it is not JSON."""
    try:
        text = json.dumps(body, indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"expected info that can be written as JSON, got {error}") from None
    if json.loads(text) != body:
        raise CheckpointError(f"expected info that comes back from JSON as it was, got {body['info']}")
    return json.dumps({"manifest": body, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1).encode()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the file that makes a folder a checkpoint. Raises CheckpointError."""
    write_file(folder / MANIFEST, render(asdict(manifest)))


def read_manifest(path: Path) -> Manifest:
    """Read a checkpoint's manifest. Raises CheckpointError if it is absent, damaged or of another format."""
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: expected a manifest, got: {error.strerror}") from error
    try:
        body = json.loads(raw)["manifest"]
        intact = render(body) == raw  # to the byte, so that not even a space can have changed
    except (ValueError, KeyError, TypeError, CheckpointError):
        intact = False
    if not intact:
        raise CheckpointError(f"{file}: expected a manifest with its own sha256, got {len(raw)} bytes that are not one")
    if body["format"] != FORMAT:
        raise CheckpointError(f"{file}: expected format {FORMAT}, got {body['format']}; read it with what wrote it")
    files = {name: FileEntry(**entry) for name, entry in body["files"].items()}
    manifest = Manifest(**body | {"files": files})
    expected = {SHARED, *(rank_file(rank) for rank in range(manifest.world_size))}
    if files.keys() != expected:  # also keeps names such as ../x out
        raise CheckpointError(f"{file}: expected the files {sorted(expected)}, got {sorted(files)}")
    if step_of(path) not in (None, manifest.step):
        raise CheckpointError(f"{file}: expected step {step_of(path)} by the folder's name, got {manifest.step}")
    return manifest


def check_file(file: Path, expected: FileEntry) -> None:
    """Raise CheckpointError with what was expected and got, unless a file is what was written."""
    try:
        with file.open("rb") as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            if size_bytes != expected.size_bytes:
                raise CheckpointError(f"{file}: expected {expected.size_bytes} bytes, got {size_bytes}")
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file}: expected {expected.size_bytes} bytes, got: {error.strerror}") from error
    if digest != expected.sha256:
        raise CheckpointError(f"{file}: expected sha256 {expected.sha256}, got {digest}")
