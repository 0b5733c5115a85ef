"""Segmentation: losses over the pixels of all ranks, scores that do not depend on how many there are."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddp.augment_config import AugmentConfig
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.data import make_loaders
from ddp.input_config import InputConfig
from ddp.loader import Batch
from ddp.loop import train_step
from ddp.metrics import accuracy, iou, iou_report, mean_iou
from ddp.mistake import Mistake
from ddp.optim_config import OptimConfig
from ddp.segmentation_config import SegmentationConfig
from ddp.segmentation_losses import dice_loss, dice_sums
from ddp.source import Dataset, Split
from ddp.task import Outcome, random_step
from ddp.tasks.segmentation import TASK
from ddp.trainer import Trainer, make_trainer
from tests.ranks import run_ranks

CLASSES, SIDE, SAMPLES = 4, 6, 7
OPTIM = OptimConfig(lr=0.1, schedule="constant", warmup=0)


class Net(nn.Module):
    """Two convolutions, in float64; a second head in training if `auxiliary`."""

    def __init__(self, *, auxiliary: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh())
        self.head = nn.Conv2d(6, CLASSES, 1)
        self.aux = nn.Conv2d(6, CLASSES, 1) if auxiliary else None
        self.double()

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        features = self.body(x.double())
        if self.aux is None or not self.training:
            return self.head(features)
        return {"out": self.head(features), "aux": self.aux(features)}


def samples() -> tuple[Tensor, Tensor]:
    """Images float64 and masks uint8 of a step: pixels are unknown here and there, all of the last sample's are.

    The last class occurs nowhere.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)
    masks = torch.randint(CLASSES - 1, (SAMPLES, 1, SIDE, SIDE), generator=generator)
    shares = torch.linspace(0, 0.8, SAMPLES).view(-1, 1, 1, 1)
    masks[torch.rand(masks.shape, generator=generator) < shares] = 255
    masks[-1] = 255
    return images, masks.to(torch.uint8)


def part_of(sizes: list[int], rank: int, images: Tensor, masks: Tensor) -> Batch:
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    rows = torch.arange(len(images))[mine]
    return Batch(images[mine], torch.zeros(len(rows), dtype=torch.int64), len(images), rows, masks=masks[mine])


def config(loss: str, **options: Any) -> TrainConfig:
    segmentation = SegmentationConfig(loss=loss, aux_weight=0.3)  # type: ignore[arg-type]
    return TrainConfig(batch_size=4, optim=OPTIM, segmentation=segmentation, **options)


def plain_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """The Dice loss in one process, class by class, from a list of known pixels."""
    known = truth != 255
    shares, classes = logits.softmax(1).movedim(1, 3)[known], truth[known]
    losses = []
    for label in classes.unique().tolist():
        true = (classes == label).double()
        shared = (shares[:, label] * true).sum()
        losses.append(1 - (2 * shared + 1) / (shares[:, label].sum() + true.sum() + 1))
    return torch.stack(losses).mean()


def plain_loss(loss: str, logits: Tensor, truth: Tensor) -> Tensor:
    parts = {"ce": lambda: cross_entropy(logits, truth, ignore_index=255), "dice": lambda: plain_dice(logits, truth)}
    return sum((parts[name]() for name in loss.split("-")), torch.zeros((), dtype=torch.float64))


def expected_step(loss: str, *, auxiliary: bool) -> tuple[float, list[Tensor]]:
    """Loss and gradients of the whole step by the plain formulas, in one process without a trainer."""
    net, (images, masks) = Net(auxiliary=auxiliary), samples()
    outputs, truth = net(images), masks[:, 0].long()
    if isinstance(outputs, Tensor):
        whole = plain_loss(loss, outputs, truth)
    else:
        whole = plain_loss(loss, outputs["out"], truth) + 0.3 * plain_loss(loss, outputs["aux"], truth)
    whole.backward()
    return whole.item(), [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def steps(
    sizes: list[int], options: TrainConfig, *, auxiliary: bool = False, unknown: bool = False
) -> list[tuple[float, list[Tensor]]]:
    """Sum of the losses and the gradients of one step, of each rank."""

    def work(ctx: DistContext) -> tuple[float, list[Tensor]]:
        net, (images, masks) = Net(auxiliary=auxiliary), samples()
        trainer = make_trainer(net, options, ctx, total_steps=10, task=TASK)
        trainer.train_mode()
        masks = torch.full_like(masks, 255) if unknown else masks
        loss = train_step(trainer, part_of(sizes, ctx.rank, images, masks))
        return loss.item(), [parameter.grad for parameter in net.parameters() if parameter.grad is not None]

    return run_ranks(work, len(sizes))


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("loss", ["ce", "dice", "ce-dice"])
@pytest.mark.parametrize("sizes", [[7], [5, 2], [6, 1], [4, 2, 1]])
def test_loss_and_gradient_are_those_of_all_known_pixels_however_they_are_shared(
    sizes: list[int], loss: str, auxiliary: bool
) -> None:
    """Breaks if a rank's pixels are averaged by themselves, or if the ranks' Dice losses are. The last rank's share has
    fewer known pixels per sample, or none at all.
    """
    results = steps(sizes, config(loss), auxiliary=auxiliary)
    value, gradients = expected_step(loss, auxiliary=auxiliary)
    assert sum(loss_sum for loss_sum, _ in results) / SAMPLES == pytest.approx(value, abs=1e-12)
    for _, found in results:
        torch.testing.assert_close(found, gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sizes", [[7], [5, 2]])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_micro_batches_do_not_change_the_mean_over_known_pixels(sizes: list[int], accumulate: int) -> None:
    results = steps(sizes, config("ce", accumulate=accumulate))
    for _, found in results:
        torch.testing.assert_close(found, expected_step("ce", auxiliary=False)[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("loss", ["ce", "ce-dice"])
def test_a_step_without_a_known_pixel_teaches_nothing(loss: str) -> None:
    for loss_sum, found in steps([4, 3], config(loss), unknown=True):
        assert loss_sum == 0
        assert not any(gradient.any() for gradient in found)  # a NaN would be true


def test_dice_of_sure_predictions_is_that_of_sets() -> None:
    """4 pixels of class 0, of which 3 are found, and 2 of class 1, both found: 7 / 8 and 5 / 6 with one pixel added."""
    truth = torch.tensor([[[0, 0, 0, 0, 1, 1, 255]]])
    prediction = torch.tensor([[[0, 0, 0, 1, 1, 1, 0]]])
    logits = torch.full((1, 3, 1, 7), -1000.0).scatter_(1, prediction[None], 1000.0)
    sums = dice_sums(logits, truth)
    assert sums.tolist() == [[3, 2, 0], [3, 3, 0], [4, 2, 0]]
    assert dice_loss(sums).item() == pytest.approx(1 - (7 / 8 + 5 / 6) / 2)


HAND_MADE = ((3, 1, 0, 0), (0, 2, 0, 1), (0, 0, 0, 0), (0, 0, 0, 0))
"""Class 2 occurs nowhere, class 3 is predicted only."""


def test_miou_of_a_hand_made_case_leaves_out_what_occurs_nowhere() -> None:
    assert iou(HAND_MADE) == (3 / 4, 2 / 4, None, 0)
    assert mean_iou(HAND_MADE) == pytest.approx((3 / 4 + 2 / 4 + 0) / 3)
    assert mean_iou(((0, 0), (0, 0))) is None
    report = iou_report(HAND_MADE, ("ground", "cat", "dog", "cow")).splitlines()
    assert [line.split() for line in report[:-1]] == [
        ["class", "IoU", "recall", "pixels"],
        ["ground", "0.7500", "0.7500", "4"],
        ["cat", "0.5000", "0.6667", "3"],
        ["dog", "n/a", "n/a", "0"],
        ["cow", "0.0000", "n/a", "0"],
        ["mIoU", "0.4167", "7"],
        ["accuracy", "0.7143", "7"],
    ]


def dataset(count: int) -> Dataset:
    """Pictures with a mask behind them, in which 255 stands here and there."""
    generator = np.random.default_rng(0)
    stored = generator.integers(256, size=(count, 4, SIDE, SIDE), dtype=np.uint8)
    stored[:, 3] = np.where(stored[:, 3] < 40, 255, stored[:, 3] % CLASSES)
    split = Split(labels=np.zeros(count, dtype=np.int64), read=stored.__getitem__)
    names = tuple(f"class {number}" for number in range(CLASSES))
    return Dataset(
        train=split, test=split, shape=(3, SIDE, SIDE), stored=(4, SIDE, SIDE), classes=names, planes=1
    )  # fmt: skip


@cache
def evaluated(world_size: int) -> tuple[Outcome, ...]:
    def work(ctx: DistContext) -> Outcome:
        options = config("ce", eval_batch_size=4)
        trainer = make_trainer(Net(), options, ctx, total_steps=1, task=TASK)
        return TASK.evaluate(trainer, make_loaders(options, dataset(22), ctx)[1])

    return tuple(run_ranks(work, world_size))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_scores_are_equal_to_the_bit_at_any_number_of_ranks(world_size: int) -> None:
    assert set(map(repr, evaluated(world_size))) == {repr(evaluated(1)[0])}


def test_scores_are_those_of_all_known_pixels() -> None:
    data, found = dataset(22), evaluated(1)[0]
    stored = torch.from_numpy(np.stack([data.test.read(row) for row in range(22)]))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    truth = stored[:, 3].long()
    with torch.no_grad():
        logits = Net().eval()((stored[:, :3] / 255 - mean) / std)
    assert isinstance(logits, Tensor)
    known = truth != 255
    confusion = np.zeros((CLASSES, CLASSES), dtype=int)
    np.add.at(confusion, (truth[known].numpy(), logits.argmax(1)[known].numpy()), 1)
    assert found.confusion == tuple(map(tuple, confusion.tolist()))
    assert found.score == found.numbers["test_miou"] == mean_iou(found.confusion)
    assert found.numbers["test_pixel_accuracy"] == accuracy(found.confusion)
    assert found.numbers["test_loss"] == pytest.approx(cross_entropy(logits, truth, ignore_index=255).item(), rel=1e-5)
    assert (found.numbers["test_samples"], found.numbers["test_pixels"]) == (22, int(known.sum()))
    assert found.report.startswith("class")


def test_a_step_for_nothing_can_be_made() -> None:
    def work(ctx: DistContext) -> float:
        trainer: Trainer = make_trainer(Net(), config("ce-dice"), ctx, total_steps=1, task=TASK)
        return train_step(trainer, random_step(TASK, (3, SIDE, SIDE), CLASSES, 3, ctx)).item()

    assert all(0 < loss < 10 for loss in run_ranks(work, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": AugmentConfig(mixup=0.2)}, "no --mixup in segmentation"),
        ({"augment": AugmentConfig(cutmix=1.0)}, "no --cutmix in segmentation"),
        ({"augment": AugmentConfig(rotate=10.0)}, "no --rotate in segmentation"),
        ({"augment": AugmentConfig(resized_crop=(0.5, 1.0))}, "no --resized-crop in segmentation"),
        ({"optim": replace(OPTIM, label_smoothing=0.1)}, "no --label-smoothing in segmentation"),
        ({"input": InputConfig(balance=True)}, "no --balance in segmentation"),
        (
            {"accumulate": 2, "segmentation": SegmentationConfig(loss="dice")},
            "expected --accumulate 1 with the Dice loss, whose sums are over a whole batch, got 2",
        ),
    ],
)
def test_what_would_leave_masks_behind_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        TASK.check(TrainConfig(**options), dataset(2))


def test_colours_flips_shifts_and_squares_are_allowed_and_data_without_masks_is_not() -> None:
    augment = AugmentConfig(brightness=0.2, hue=0.1, greyscale=0.1, cutout=2)
    TASK.check(TrainConfig(augment=augment, accumulate=2), dataset(2))
    with pytest.raises(Mistake, match="expected data with a class for each pixel"):
        TASK.check(TrainConfig(), replace(dataset(2), planes=0))
    with pytest.raises(Mistake, match="expected a finite --aux-weight of at least 0, got -1"):
        SegmentationConfig(aux_weight=-1)
