"""The idx files in which MNIST and its successors come: a header, then numbers. Imports numpy only.

Format: two zero bytes, a byte for the type, a byte for the number of dimensions, each size as a big-endian int32, then
the values, the last dimension varying fastest. Source: LeCun's page of MNIST. Only the type uint8 occurs in these sets.
"""

import gzip
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddp.mistake import Mistake, require

UINT8 = 0x08
"""The byte that stands for unsigned bytes."""
GZIP_MAGIC = b"\x1f\x8b"


def _opened(path: Path) -> BinaryIO:
    """The file, unpacked while it is read if it is a gzip file, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _sizes(file: BinaryIO, path: Path, dimensions: int) -> tuple[int, ...]:
    magic, expected = file.read(4), bytes((0, 0, UINT8, dimensions))
    require(
        magic == expected,
        f"an idx file of bytes in {dimensions} dimensions (magic {expected.hex()}) in {path}",
        magic.hex() or "an empty file",
        "download it again",
    )
    header = file.read(4 * dimensions)
    require(
        len(header) == 4 * dimensions,
        f"{dimensions} sizes in the header of {path}",
        f"{len(header)} bytes",
        "download it again",
    )
    return struct.unpack(f">{dimensions}i", header)


def idx_sizes(path: Path, dimensions: int) -> tuple[int, ...]:
    """The size of each dimension, from the header alone. Raises Mistake if that is not as expected."""
    try:
        with _opened(path) as file:
            return _sizes(file, path, dimensions)
    except (OSError, EOFError) as error:
        raise Mistake(f"expected a readable file {path}, got {error}; download it again") from None


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The values, uint8 of as many dimensions. Raises Mistake for a file that is damaged or of another kind."""
    try:
        with _opened(path) as file:
            sizes = _sizes(file, path, dimensions)
            values = np.frombuffer(bytearray(file.read()), dtype=np.uint8)  # writable, as torch wants arrays
    except (OSError, EOFError) as error:  # of gzip: not one, cut off, or a wrong checksum
        raise Mistake(f"expected a readable file {path}, got {error}; download it again") from None
    wanted = "x".join(map(str, sizes))
    require(
        values.size == int(np.prod(sizes, dtype=np.int64)),
        f"{wanted} values in {path}, as its header says",
        values.size,
        "download it again",
    )
    return values.reshape(sizes)
