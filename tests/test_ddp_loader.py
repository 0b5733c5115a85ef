"""What the loaders of a run give: the same images from any cache at any number of ranks, folds, blends, balance."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddp.augment_config import AugmentConfig
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.data import make_loaders
from ddp.datasets import imagefolder
from ddp.folds import folded
from ddp.input_config import InputConfig
from ddp.loader import Loader
from ddp.mixing import mixing_for
from ddp.source import Dataset, array_split
from tests.ranks import run_ranks
from tests.test_ddp_datasets import image_folder

SHAPE = (3, 8, 8)
EPOCH = 3


def images_of(root: Path) -> Dataset:
    """12 training and 12 test images in files, all different."""
    config = InputConfig(data="imagefolder", data_dir=image_folder(root, per_class=6, size=8))
    return imagefolder.load(config, SHAPE, 0)


def arrays(train: int = 60, test: int = 7) -> Dataset:
    """Random images in memory, of three classes of which the last has few training samples."""
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(train) % 12 == 0, 2, np.arange(train) % 2)
    splits = [
        array_split(rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8), some)
        for count, some in ((train, labels), (test, np.arange(test) % 3))
    ]
    return Dataset(train=splits[0], test=splits[1], shape=SHAPE, stored=SHAPE, classes=("a", "b", "c"))


def config_of(changes: AugmentConfig | None = None, **options: Any) -> TrainConfig:
    """Global batches of 6, so that 1, 2 and 3 ranks share them."""
    return TrainConfig(
        global_batch_size=6, eval_batch_size=4, input=InputConfig(**options), augment=changes or AugmentConfig()
    )


def seen(loader: Loader) -> dict[int, Tensor]:
    """The images of an epoch by their index."""
    loader.set_epoch(EPOCH)
    return {
        int(index): image
        for batch in loader
        for index, image in zip(batch.indices, batch.inputs, strict=True)
    }  # fmt: skip


def over_ranks(work: Callable[[DistContext], dict[int, Tensor]], ranks: int) -> dict[int, Tensor]:
    parts = run_ranks(lambda ctx: {index: image.numpy() for index, image in work(ctx).items()}, ranks)
    return {index: torch.from_numpy(image) for part in parts for index, image in part.items()}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_cache_gives_the_same_batches_in_the_same_order(tmp_path: Path, ranks: int) -> None:
    dataset = images_of(tmp_path / "data")

    def work(ctx: DistContext) -> bool:
        found = []
        for cache in ("memory", "disk", "none"):
            options = {"cache": cache, "workers": 1, "cache_dir": tmp_path / "cache" if cache == "disk" else None}
            train, test = make_loaders(config_of(**options), dataset, ctx)
            batches = []
            for epoch in (1, 2):
                train.set_epoch(epoch)
                batches += [*train, *test]
            found.append(batches)
        return all(
            torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
            for others in found[1:]
            for one, other in zip(found[0], others, strict=True)
        )

    assert run_ranks(work, ranks) == [True] * ranks
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_cache_on_disk_lies_in_the_data_folder_by_default(tmp_path: Path) -> None:
    dataset = images_of(tmp_path)
    run_ranks(lambda ctx: len(make_loaders(config_of(cache="disk", data_dir=tmp_path), dataset, ctx)), 2)
    assert len(list((tmp_path / ".ringmark-cache").glob("*.uint8"))) == 2


def test_data_that_is_in_memory_needs_no_folder_for_a_cache_on_disk() -> None:
    def work(ctx: DistContext) -> dict[int, Tensor]:
        return seen(make_loaders(config_of(cache="disk"), arrays(), ctx)[0])

    assert len(over_ranks(work, 1)) == 60


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_fold_is_tested_on_and_the_rest_is_trained_on_and_the_test_set_is_not_read(
    tmp_path: Path, cache: Any
) -> None:
    dataset = images_of(tmp_path)
    unread = replace(dataset, test=replace(dataset.test, read=_never, identity=None))

    def work(ctx: DistContext) -> list[list[Any]]:
        tested = []
        for fold in range(3):
            options = config_of(cache=cache, data_dir=tmp_path, folds=3, fold=fold, augment="none", workers=1)
            train, test = make_loaders(options, unread, ctx)
            parts = folded(dataset, options.input, options.seed)
            assert (len(train.labels), len(test.labels)) == (8, 4)
            for loader, part in ((train, parts.train), (test, parts.test)):
                for index, image in seen(loader).items():
                    stored = torch.from_numpy(part.read(index)).float() / 255
                    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (dataset.mean, dataset.std))
                    torch.testing.assert_close(image, (stored - mean) / std, rtol=0, atol=1e-5)
            tested.append(parts.test.rows.tolist())
        return tested

    for tested in run_ranks(work, 2):
        assert sorted(index for fold in tested for index in fold) == list(range(12))
    if cache == "disk":
        assert len(list((tmp_path / ".ringmark-cache").glob("*.uint8"))) == 1  # one file for all folds


def _never(index: int) -> np.ndarray:
    raise AssertionError("expected the test set to stay unread")


MIXUP = AugmentConfig(mixup=1.0)


@pytest.mark.parametrize(("augment", "ranks"), [(MIXUP, 1), (MIXUP, 3), (AugmentConfig(cutmix=1.0), 2)])
def test_blends_are_of_a_sample_and_its_partner_each_changed_as_itself(augment: AugmentConfig, ranks: int) -> None:
    dataset = arrays()
    mixing = mixing_for(augment, 60, 0)
    assert mixing is not None

    def plain(ctx: DistContext) -> dict[int, Tensor]:
        return seen(make_loaders(config_of(augment="crop-flip"), dataset, ctx)[0])

    def work(ctx: DistContext) -> dict[int, Tensor]:
        train, test = make_loaders(config_of(augment, augment="crop-flip"), dataset, ctx)
        assert all(batch.mix is None for batch in test)
        train.set_epoch(EPOCH)
        for batch in train:
            assert batch.mix is not None
            partners = mixing.partners(batch.indices, EPOCH)
            assert batch.mix.labels.tolist() == dataset.train.labels[partners.numpy()].tolist()
            own, others = (torch.stack([expected[int(i)] for i in some]) for some in (batch.indices, partners))
            blends, share = mixing.blend(own, others, batch.indices, EPOCH)
            assert torch.equal(batch.inputs, blends)
            assert torch.equal(batch.mix.share, share)
        return seen(train)

    expected = over_ranks(plain, 1)
    assert sorted(over_ranks(work, ranks)) == list(range(60))


def test_a_sample_that_is_drawn_again_is_changed_in_another_way() -> None:
    def work(ctx: DistContext) -> tuple[int, int, int]:
        plain = make_loaders(config_of(balance=True, augment="crop-flip", crop_padding=4), arrays(), ctx)[0]
        draws = [
            (int(index), image.numpy().tobytes())
            for batch in plain
            for index, image in zip(batch.indices, batch.inputs, strict=True)
        ]
        mixed = make_loaders(config_of(MIXUP, balance=True), arrays(), ctx)[0]
        assert all(len(batch.mix.labels) == len(batch.indices) for batch in mixed if batch.mix is not None)
        return len(draws), len({index for index, _ in draws}), len(set(draws))

    draws, samples, different = run_ranks(work, 1)[0]
    assert draws == 60
    assert samples < 50
    assert different >= 58  # two of 162 changes may be alike


@pytest.mark.parametrize(("cache", "ranks"), [("memory", 2), ("none", 3)])
def test_a_sample_is_changed_anew_in_each_epoch_and_alike_under_one_seed(cache: Any, ranks: int) -> None:
    """T16. Breaks if epoch or seed do not reach the augmentation, or if ranks or loader processes draw on their own."""

    def images(seed: int, epoch: int, ranks: int) -> dict[int, Tensor]:
        def work(ctx: DistContext) -> dict[int, Tensor]:
            torch.manual_seed(ranks + ctx.rank)  # generators must not matter
            options = config_of(cache=cache, workers=1, augment="crop-flip", crop_padding=4)
            train, _ = make_loaders(replace(options, seed=seed), arrays(), ctx)
            for each in (EPOCH, epoch):  # the second epoch that the same processes serve
                train.set_epoch(each)
                found = {int(i): image for batch in train for i, image in zip(batch.indices, batch.inputs, strict=True)}
            return found

        return over_ranks(work, ranks)

    first = images(0, 1, ranks)
    assert sorted(first) == list(range(60))
    for seed, epoch, least, most in ((0, 1, 60, 60), (0, 2, 0, 10), (1, 1, 0, 10)):  # 1 change of 162 is the same
        other = images(seed, epoch, 1)
        assert least <= sum(torch.equal(first[index], other[index]) for index in first) <= most


def test_a_loader_that_was_left_early_begins_its_next_epoch_at_the_start(tmp_path: Path) -> None:
    dataset = images_of(tmp_path)

    def work(ctx: DistContext) -> list[list[int]]:
        train, _ = make_loaders(config_of(cache="none", workers=1), dataset, ctx)
        found = []
        for epoch, done in ((1, 0), (2, 0), (2, 6)):
            train.set_epoch(epoch, done)
            for batch in train:
                assert torch.equal(batch.targets, train.labels[batch.indices])
                found.append(batch.indices.tolist())
                if epoch == 1:
                    break
        return found

    first, *second = run_ranks(work, 1)[0]
    assert len(first) == 6
    assert sorted(second[0] + second[1]) == list(range(12))
    assert second[1:2] == second[2:]  # resumed after six samples: the second batch, and no more
