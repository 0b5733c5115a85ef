"""Masks that move with their images, numbers in the place of images, and a loader's own state in checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddp.augment_config import AugmentConfig
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.data import make_loaders
from ddp.fit import fit
from ddp.folds import folded
from ddp.input_config import InputConfig
from ddp.loader import Loader
from ddp.optim_config import OptimConfig
from ddp.progress import Silent
from ddp.source import UNKNOWN, Dataset, array_split, number_split
from ddp.tasks.classification import Classification
from tests.ranks import run_ranks

SAMPLES, SIZE = 12, 8


def masked() -> Dataset:
    """Grey images whose mask holds the same values, 1 to 200."""
    images = np.random.default_rng(0).integers(1, 201, (SAMPLES, 1, SIZE, SIZE), dtype=np.uint8)
    split = array_split(np.concatenate([images, images], axis=1), np.zeros(SAMPLES, dtype=np.int64))
    shape = (1, SIZE, SIZE)
    return Dataset(
        train=split, test=split, shape=shape, stored=(2, SIZE, SIZE), classes=("a",), mean=(0.0,), std=(1.0,), planes=1
    )


def pairs(changes: AugmentConfig, **options: Any) -> tuple[Tensor, Tensor]:
    """An epoch's images, in grey values, and masks."""
    config = TrainConfig(global_batch_size=6, input=InputConfig(**options), augment=changes)

    def work(ctx: DistContext) -> tuple[np.ndarray, np.ndarray]:
        train, _ = make_loaders(config, masked(), ctx)
        train.set_epoch(1)
        batches = list(train)
        masks = torch.cat([batch.masks for batch in batches if batch.masks is not None])
        return torch.cat([batch.inputs for batch in batches]).numpy(), masks.numpy()

    images, masks = run_ranks(work, 1)[0]
    return (torch.from_numpy(images) * 255).round().to(torch.uint8), torch.from_numpy(masks)


def test_masks_move_with_their_images_and_a_border_is_unknown() -> None:
    images, masks = pairs(AugmentConfig(), augment="crop-flip", crop_padding=3)
    assert (masks == UNKNOWN).any()
    assert torch.equal(images, torch.where(masks == UNKNOWN, 0, masks))


def test_images_with_masks_are_not_shifted_unless_asked_to() -> None:
    images, masks = pairs(AugmentConfig(), augment="crop")
    assert not (masks == UNKNOWN).any()
    assert torch.equal(images, masks)


def test_colours_and_cutout_change_images_and_not_their_masks() -> None:
    _, before = pairs(AugmentConfig(), augment="none")
    images, masks = pairs(AugmentConfig(brightness=0.5, cutout=4), augment="none")
    assert torch.equal(masks, before)
    assert not torch.equal(images, masks)


def numbers() -> Dataset:
    """Rows of 3 numbers, of which the largest tells the class."""
    rows = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    split = number_split(rows, rows.argmax(1))
    return Dataset(train=split, test=split, shape=(3,), stored=(3,), classes=tuple("abc"))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_numbers_reach_the_model_as_they_are_each_sample_once(ranks: int) -> None:
    config = TrainConfig(global_batch_size=6, input=InputConfig(folds=3, fold=1))

    def work(ctx: DistContext) -> list[tuple[list[int], np.ndarray, list[int]]]:
        return [
            (batch.indices.tolist(), batch.inputs.numpy(), batch.targets.tolist())
            for batch in make_loaders(config, numbers(), ctx)[0]
        ]

    expected = folded(numbers(), config.input, config.seed).train
    assert expected.inputs is not None
    seen = [batch for part in run_ranks(work, ranks) for batch in part]
    assert sorted(index for indices, _, _ in seen for index in indices) == list(range(20))
    for indices, inputs, targets in seen:
        assert np.array_equal(inputs, expected.inputs[indices])
        assert targets == expected.labels[indices].tolist()


class Counting(Loader):
    """Counts its batches over a whole run, also over a resumed one."""

    count = 0

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.count += 1
            yield batch

    def own_state(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_own(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_what_a_loader_holds_is_in_the_checkpoint_of_its_rank(tmp_path: Path) -> None:
    def run(ctx: DistContext, stop_after: int, resume: str) -> int:
        loaders: list[Counting] = []

        class Own(Classification):
            def make_loaders(self, config: Any, dataset: Any, ctx: Any, module: Any) -> Any:
                train, test = make_loaders(config, dataset, ctx)
                loaders.append(Counting(**vars(train)))
                loaders[0].count = 100 * ctx.rank
                return loaders[0], test

        config = TrainConfig(
            epochs=2,
            global_batch_size=6,
            out=tmp_path,
            resume=resume,
            stop_after=stop_after,
            optim=OptimConfig(lr=0.01, schedule="constant", warmup=0),
        )
        torch.manual_seed(0)
        fit(nn.Linear(3, 3), numbers(), config, ctx, Silent(), Own())
        return loaders[0].count

    def stopped_and_resumed(ctx: DistContext) -> tuple[int, int]:
        return run(ctx, 3, "none"), run(ctx, 0, "auto")

    assert run_ranks(stopped_and_resumed, 2) == [(3, 10), (103, 110)]
