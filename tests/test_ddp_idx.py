"""idx files and the data sets made of them: what is read is what was written, and what is wrong is named."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddp.datasets import fashion_mnist, mnist
from ddp.idx import idx_sizes, read_idx
from ddp.input_config import InputConfig


def write_idx(path: Path, values: np.ndarray, *, packed: bool = False, magic: bytes | None = None) -> None:
    """Write the published format, by hand."""
    header = (magic or bytes([0, 0, 8, values.ndim])) + struct.pack(f">{values.ndim}i", *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)


def write_set(folder: Path, *, packed: bool = False, train: int = 5, test: int = 3) -> dict[str, np.ndarray]:
    """Four files of random images with the labels 0, 1, 2, ..."""
    rng, written = np.random.default_rng(0), {}
    end = ".gz" if packed else ""
    for split, samples in (("train", train), ("t10k", test)):
        written[split] = rng.integers(0, 256, (samples, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte{end}", written[split], packed=packed)
        write_idx(folder / f"{split}-labels-idx1-ubyte{end}", np.arange(samples), packed=packed)
    return written


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "."), ("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")]
)
def test_images_and_labels_are_those_of_the_files(tmp_path: Path, packed: bool, name: str, folder: str) -> None:
    written = write_set(tmp_path / folder, packed=packed)
    module = {"mnist": mnist, "fashion_mnist": fashion_mnist}[name]
    config = InputConfig(data=name, data_dir=tmp_path)
    dataset = module.load(config, (3, 32, 32), 7)
    assert module.count(config) == len(dataset.train) == 5
    assert (dataset.shape, dataset.stored, len(dataset.classes)) == ((1, 28, 28), (1, 28, 28), 10)
    assert np.array_equal(dataset.train.read(4), written["train"][4:5])
    assert dataset.train.read(4).flags.writeable  # or torch warns of it
    assert np.array_equal(dataset.test.read(1), written["t10k"][1:2])
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2])
    larger = module.load(InputConfig(data=name, data_dir=tmp_path, image_size=32), (3, 32, 32), 7)
    assert larger.train.read(0).shape == larger.shape == (1, 32, 32)


def test_a_shirt_may_be_mirrored_and_a_digit_may_not(tmp_path: Path) -> None:
    write_set(tmp_path)
    config = InputConfig(data="mnist", data_dir=tmp_path)
    assert not mnist.load(config, (1, 28, 28), 10).flip
    assert fashion_mnist.load(config, (1, 28, 28), 10).flip


def test_missing_files_are_refused_with_the_way_to_get_them(tmp_path: Path) -> None:
    config = InputConfig(data="mnist", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"expected the files .* or its folder MNIST/raw, got none of them; put them"):
        mnist.count(config)
    with pytest.raises(ValueError, match="expected --data-dir with --data mnist, got none"):
        mnist.count(InputConfig(data="mnist"))
    assert mnist.count(InputConfig(data="mnist", data_dir=tmp_path, download=True)) == 60_000
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="got all but t10k-labels-idx1-ubyte; put them there, or add --download"):
        mnist.load(config, (1, 28, 28), 10)


def test_images_and_labels_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    config = InputConfig(data="mnist", data_dir=tmp_path)
    write_set(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(4))
    with pytest.raises(ValueError, match=r"expected 3 labels in .*t10k-labels-idx1-ubyte, as there are images, got 4"):
        mnist.load(config, (1, 28, 28), 10)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([1, 10, 2]))
    with pytest.raises(ValueError, match=r"expected labels under 10 in .*t10k-labels-idx1-ubyte, got 10; take both"):
        mnist.load(config, (1, 28, 28), 10)
    write_set(tmp_path, train=0)
    with pytest.raises(ValueError, match=r"expected images in .*train-images-idx3-ubyte, got none"):
        mnist.load(config, (1, 28, 28), 10)


def test_sizes_are_read_from_the_header_alone(tmp_path: Path) -> None:
    values = np.zeros((300, 2, 3))
    write_idx(tmp_path / "file", values)
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:16])
    assert idx_sizes(tmp_path / "file", 3) == (300, 2, 3)
    with pytest.raises(ValueError, match=r"expected 300x2x3 values in .*file, as its header says, got 0; download"):
        read_idx(tmp_path / "file", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected an idx file of bytes in 1 dimensions \(magic 00000801\) in .*file, got an empty file"),
        (b"\0\0\x08\x03" + b"\0" * 12, "magic 00000801.*, got 00000803; download it again"),
        (b"\0\0\x0d\x01\0\0\0\x01" + b"\0" * 4, "magic 00000801.*, got 00000d01"),
        (b"<html>", "got 3c68746d"),
        (b"\0\0\x08\x01\0\0", "expected 1 sizes in the header of .*file, got 2 bytes"),
        (b"\0\0\x08\x01\0\0\0\x03\1\2", "expected 3 values in .*file, as its header says, got 2"),
        (b"\0\0\x08\x01\0\0\0\x03\1\2\3\4", "expected 3 values in .*file, as its header says, got 4"),
        (
            gzip.compress(b"\0\0\x08\x01\0\0\0\x03\1\2\3", mtime=0)[:-9],
            "expected a readable file .*file, got Compressed file",
        ),
        (
            gzip.compress(b"\0\0\x08\x01\0\0\0\x03\1\2\3", mtime=0)[:-8] + b"\0" * 8,
            "readable file .*file, got CRC check failed",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file", 1)


LIGHT = """
import sys
from pathlib import Path
from ddp.datasets import fashion_mnist, linear, mnist, sine, table
from ddp.input_config import InputConfig
config = InputConfig(data="mnist", data_dir=Path(sys.argv[1]))
print(mnist.count(config), linear.count(config), sine.count(config), {"torch", "torchvision"} & set(sys.modules))
"""


def test_samples_are_counted_without_torch(tmp_path: Path) -> None:
    write_set(tmp_path, packed=True)
    done = subprocess.run([sys.executable, "-c", LIGHT, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "5 2048 2048 set()\n", done.stderr
