"""Images on disk: the same bytes as decoded ones, made once, anew when the folder changes, and never half."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddp.context import DistContext
from ddp.datasets import imagefolder
from ddp.disk_cache import images_on_disk
from ddp.input_config import InputConfig
from ddp.mistake import Mistake
from ddp.source import Split
from tests import forks
from tests.ranks import run_ranks
from tests.test_ddp_datasets import image_folder

SHAPE = (3, 8, 8)


def split_of(folder: Path) -> Split:
    """Six training images, all different; made from the folder as it is now."""
    imagefolder._scan.cache_clear()
    return imagefolder.load(InputConfig(data="imagefolder", data_dir=folder), SHAPE, 0).train


def decoded(split: Split) -> list[Any]:
    return [split.read(index).tolist() for index in range(len(split))]


def cached(split: Split, folder: Path, ranks: int = 1) -> list[Any]:
    """The images as every rank sees them."""
    return run_ranks(lambda ctx: images_on_disk(split, SHAPE, folder, ctx).tolist(), ranks)


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_rank_sees_the_images_and_nothing_is_decoded_again(tmp_path: Path, ranks: int) -> None:
    split = split_of(image_folder(tmp_path / "data", size=8))
    expected, folder = decoded(split), tmp_path / "new" / "cache"
    assert cached(split, folder, ranks) == [expected] * ranks
    assert names(folder) == [".uint8"]
    assert cached(replace(split, read=_never), folder, ranks) == [expected] * ranks


def _never(index: int) -> np.ndarray:
    raise AssertionError("expected no image to be decoded again")


def _other_pixels(folder: Path) -> None:
    image_folder(folder.parent / "other", size=8)
    (folder.parent / "other" / "val" / "dog" / "2.png").replace(folder / "train" / "cat" / "1.png")


def _one_image_less(folder: Path) -> None:
    (folder / "train" / "dog" / "0.png").unlink()


@pytest.mark.parametrize("change", [_other_pixels, _one_image_less])
def test_a_changed_folder_is_decoded_anew(tmp_path: Path, change: Callable[[Path], None]) -> None:
    data, folder = image_folder(tmp_path / "data", size=8), tmp_path / "cache"
    before = cached(split_of(data), folder)
    change(data)
    split = split_of(data)
    assert cached(split, folder, 2) == [decoded(split)] * 2
    assert cached(split, folder) != before


def test_splits_with_files_of_the_same_names_sizes_and_times_are_told_apart(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", size=8)
    for path in data.rglob("*.png"):
        Image.open(path).save(path, format="BMP")  # as large for any pixels
        os.utime(path, ns=(0, 0))
    dataset = imagefolder.load(InputConfig(data="imagefolder", data_dir=data), SHAPE, 0)
    assert cached(dataset.train, tmp_path / "cache") == [decoded(dataset.train)]
    assert cached(dataset.test, tmp_path / "cache") == [decoded(dataset.test)]


def _build_until(split: Split, folder: Path, reached: Any, go_on: Any, results: Any) -> None:
    """In a child: build, but halfway say so and wait."""

    def read(index: int) -> np.ndarray:
        if index == 3:
            reached.set()
            go_on.wait(60)  # a test that has failed must not wait for ever
        return split.read(index)

    results.put(cached(replace(split, read=read), folder))


class _Build:
    """Another job, which builds and waits halfway."""

    def __init__(self, split: Split, folder: Path) -> None:
        fork = multiprocessing.get_context("fork")
        self.reached, self.go_on, self.results = fork.Event(), fork.Event(), fork.Queue()
        self.process = forks.start(_build_until, split, folder, self.reached, self.go_on, self.results)
        assert self.reached.wait(60)


def test_a_build_that_is_killed_is_not_taken_for_a_whole_one_and_leaves_no_file_for_long(tmp_path: Path) -> None:
    split, folder = split_of(image_folder(tmp_path / "data", size=8)), tmp_path / "cache"

    def dies(index: int) -> np.ndarray:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return split.read(index)

    killed = replace(split, read=dies)
    assert run_ranks(lambda ctx: images_on_disk(killed, SHAPE, folder, ctx).tolist(), 1, may_die=True) == [None]
    assert names(folder) == [".tmp"]
    assert cached(split, folder, 2) == [decoded(split)] * 2
    assert names(folder) == [".uint8"]


def test_two_jobs_that_build_at_the_same_time_both_get_their_images(tmp_path: Path) -> None:
    split, folder = split_of(image_folder(tmp_path / "data", size=8)), tmp_path / "cache"
    other = _Build(split, folder)
    assert cached(split, folder, 2) == [decoded(split)] * 2
    assert names(folder) == [".tmp", ".uint8"]  # the other job's was not swept away
    other.go_on.set()
    assert other.results.get(timeout=60) == [decoded(split)]
    other.process.join()
    assert names(folder) == [".uint8"]


def test_a_file_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    split, folder = split_of(image_folder(tmp_path / "data", size=8)), tmp_path / "cache"
    cached(split, folder)
    (file,) = folder.iterdir()
    os.truncate(file, 100)
    assert cached(split, folder) == [decoded(split)]


def _refused(split: Split, folder: Path, ctx: DistContext) -> str:
    with pytest.raises(Mistake) as caught:
        images_on_disk(split, SHAPE, folder, ctx)
    return str(caught.value)


def test_a_full_disk_is_told_to_all_ranks_with_the_bytes_that_are_needed(tmp_path: Path) -> None:
    split = split_of(image_folder(tmp_path / "data", size=8))

    def work(ctx: DistContext) -> str:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if ctx.rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        try:
            return _refused(split, tmp_path / "cache", ctx)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    texts = run_ranks(work, 2)
    assert texts[0] == texts[1]
    assert texts[0].startswith(f"expected a folder for 1152 bytes of decoded images (1.07e-06 GiB) in {tmp_path}/cache")
    assert "got: File too large; make room, choose another with --cache-dir, or use --cache none" in texts[0]
    assert names(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_made_is_told_to_all_ranks(tmp_path: Path) -> None:
    split = split_of(image_folder(tmp_path / "data", size=8))
    (tmp_path / "file").touch()
    texts = run_ranks(lambda ctx: _refused(split, tmp_path / "file" / "cache", ctx), 2)
    assert all("expected a folder for 1152 bytes" in text and "got: Not a directory;" in text for text in texts)


def test_an_image_that_cannot_be_decoded_is_told_to_all_ranks_and_leaves_no_file(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", size=8)
    (data / "train" / "cat" / "1.png").write_bytes(b"not an image")
    texts = run_ranks(lambda ctx: _refused(split_of(data), tmp_path / "cache", ctx), 3)
    assert all("train/cat/1.png, got a file that cannot be decoded" in text for text in texts)
    assert names(tmp_path / "cache") == []


def test_a_node_that_has_the_file_waits_for_one_that_builds_it(tmp_path: Path) -> None:
    split = split_of(image_folder(tmp_path / "data", size=8))
    cached(split, tmp_path / "1")

    def work(ctx: DistContext) -> bool:
        own = replace(ctx, node_rank=ctx.rank, local_rank=0, local_world_size=1)
        images: Tensor = images_on_disk(split, SHAPE, tmp_path / str(ctx.rank), own)
        return torch.equal(images[4], torch.from_numpy(split.read(4)))

    assert run_ranks(work, 3) == [True] * 3
    assert [names(tmp_path / str(node)) for node in range(3)] == [[".uint8"]] * 3
