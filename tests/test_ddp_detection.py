"""Detection on several ranks: exact gradients, ranks without a box, AP, and boxes that move with their images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from ddp.augment_config import AugmentConfig
from ddp.boxes import BoxLoader, target_dicts, unpacked
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.datasets import shapes_boxes
from ddp.input_config import InputConfig
from ddp.loop import train_step
from ddp.mistake import Mistake
from ddp.optim_config import OptimConfig
from ddp.source import Dataset, Split
from ddp.tasks.detection import TASK
from tests.detector_runs import SIDE, batch_of, tiny_maskrcnn, tiny_yolo, trainer_of
from tests.ranks import run_ranks

COUNTS = [4, 1, 2, 3, 0, 0, 0]
"""Boxes of a step's 7 samples: the last rank has none."""


def gradients_of(sizes: list[int], **options: Any) -> list[Tensor]:
    def work(ctx: DistContext) -> list[Tensor]:
        trainer = trainer_of(tiny_yolo(), ctx, **options)
        train_step(trainer, batch_of(sizes, ctx.rank, COUNTS, torch.float64))
        return [each.grad.clone() for each in trainer.module.parameters() if each.grad is not None]

    results = run_ranks(work, len(sizes))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)
    return results[0]


def test_gradients_are_those_of_one_process_whatever_boxes_a_rank_has() -> None:
    """Breaks if the loss is divided by the boxes of a rank's samples instead of each sample's own."""
    whole = gradients_of([7])
    assert len(whole) == len(list(tiny_yolo().parameters()))
    for sizes in ([5, 2], [4, 3], [4, 2, 1]):
        torch.testing.assert_close(gradients_of(sizes), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients_of([4, 3], accumulate=2), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sync_bn", [False, True])
@pytest.mark.parametrize("counts", [[2, 1, 0, 0], [0, 0, 0, 0]])
def test_mask_rcnn_trains_though_a_rank_has_no_box(counts: list[int], sync_bn: bool) -> None:
    """Without find_unused_parameters: a parameter without a gradient would let DDP complain in the second step."""

    def work(ctx: DistContext) -> tuple[list[float], list[Tensor], bool, list[str]]:
        trainer = trainer_of(tiny_maskrcnn(), ctx, sync_bn=sync_bn)
        batch = batch_of([2, 2], ctx.rank, counts, torch.float32)
        losses = [float(train_step(trainer, batch)) for _ in range(2)]
        without = [name for name, each in trainer.module.named_parameters() if each.grad is None]
        finite = all(bool(torch.isfinite(each).all()) for each in trainer.module.state_dict().values())
        return losses, [each.detach().clone() for each in trainer.module.parameters()], finite, without

    results = run_ranks(work, 2)
    for losses, _, finite, without in results:
        assert all(np.isfinite(losses))
        assert finite, "a weight or a running statistic is not finite"
        assert without == []
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=0)


def test_a_dict_of_losses_counts_once_for_each_sample() -> None:
    def work(ctx: DistContext) -> tuple[int, float, float]:
        trainer = trainer_of(tiny_maskrcnn(), ctx)
        batch = batch_of([3], 0, [2, 1, 0], torch.float32)
        torch.manual_seed(1)  # it draws the regions it learns from
        losses = TASK.losses(trainer, batch)
        torch.manual_seed(1)
        means = trainer.module(batch.inputs, target_dicts(batch, padded=False, masks=True))
        return len(losses), float(losses.detach().sum()), 3 * float(sum(means.values()))

    count, total, expected = run_ranks(work, 1)[0]
    assert count == 3
    assert total == pytest.approx(expected, rel=1e-5)


class Told(nn.Module):
    """Knows an image by its sum, and what is in it: shows nothing of every third, and of some the boxes a bit off."""

    uses_masks = True

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.split = split
        self.known = {int(split.read(index)[:3].astype(np.int64).sum()): index for index in range(len(split))}

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            index = self.known[int(((image * 0.25 + 0.5) * 255).round().long().sum())]
            target = torch.from_numpy(self.split.labels[index])
            real = target[:, 0] >= (9 if index % 3 == 0 else 0)
            masks = unpacked(torch.from_numpy(self.split.read(index)[None, 3:]))[0, : len(target)][real]
            found.append(
                {
                    "boxes": target[real, 1:] + torch.tensor([index % 2 * 3.0, 0, 0, 0]),
                    "labels": target[real, 0].long(),
                    "scores": torch.linspace(0.9, 0.3, int(real.sum())) / (1 + index % 4),
                    "masks": masks[:, None].float(),
                }
            )
        return found


def few_shapes(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(shapes_boxes, "TRAIN_SAMPLES", 12)
    monkeypatch.setattr(shapes_boxes, "TEST_SAMPLES", 23)
    return shapes_boxes.load(InputConfig(data="shapes-boxes"), (3, SIDE, SIDE), 4)


def test_ap_is_the_same_at_any_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4 of 23 images, so that a rank of four has one batch and others two."""
    dataset = few_shapes(monkeypatch)

    def work(ctx: DistContext) -> dict[str, Any]:
        trainer = trainer_of(Told(dataset.test), ctx, eval_batch_size=4)
        loaders = TASK.make_loaders(trainer.config, dataset, ctx, trainer.module)
        outcome = TASK.evaluate(trainer, loaders[1])
        return {**outcome.numbers, "score": outcome.score, "text": outcome.text}

    alone = run_ranks(work, 1)[0]
    assert alone["test_samples"] == 23
    assert 0.3 < alone["test_ap"] < alone["test_ap50"] == alone["score"] < 0.8
    assert alone["test_ap50"] < alone["test_mask_ap50"] + 0.2
    assert alone["text"].startswith(f"test AP50 {alone['score']:.4f}  AP ")
    for world_size in (2, 3, 4):
        assert run_ranks(work, world_size) == [alone] * world_size


def test_without_pycocotools_on_one_rank_the_score_is_unknown_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = few_shapes(monkeypatch)

    def work(ctx: DistContext) -> tuple[Any, ...]:
        if ctx.rank == 1:
            monkeypatch.setattr("ddp.tasks.detection.available", lambda: False)
        trainer = trainer_of(tiny_yolo(), ctx)
        outcome = TASK.evaluate(trainer, TASK.make_loaders(trainer.config, dataset, ctx, trainer.module)[1])
        return outcome.score, outcome.numbers, outcome.text, outcome.report

    for score, numbers, text, report in run_ranks(work, 2):
        assert score is None
        assert numbers == {"test_ap": None, "test_ap50": None, "test_ap75": None, "test_samples": 23}
        assert text == "test AP50 unknown"
        assert "pip install pycocotools" in report


def test_boxes_and_masks_are_mirrored_with_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each box is the one around its mask, of which the image's own augmentation decides where it lies."""
    dataset = few_shapes(monkeypatch)

    def work(ctx: DistContext) -> tuple[int, int]:
        loader = TASK.make_loaders(TrainConfig(batch_size=5), dataset, ctx, tiny_maskrcnn())[0]
        assert isinstance(loader, BoxLoader)
        mirrored = boxes = 0
        for epoch in range(3):
            loader.set_epoch(epoch)
            for batch in loader:
                stored = torch.from_numpy(dataset.train.labels)[batch.indices]
                mirrored += int((batch.targets != stored).flatten(1).any(1).sum())
                for target in target_dicts(batch, padded=False, masks=True):
                    for box, mask in zip(target["boxes"].long().tolist(), target["masks"], strict=True):
                        around = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
                        assert box == around.long().tolist()
                        boxes += 1
        return mirrored, boxes

    mirrored, boxes = run_ranks(work, 1)[0]
    assert 8 < mirrored < 28  # of 36
    assert boxes == 3 * int((dataset.train.labels[:, :, 0] >= 0).sum())


def test_random_batches_hold_boxes_in_the_image_and_their_masks() -> None:
    inputs, targets, masks = TASK.random_batch((3, 48, 64), 5, 8, torch.Generator().manual_seed(0))
    real = targets[..., 0] >= 0
    assert inputs.shape == (8, 3, 48, 64)
    assert [bool(each) for each in real.any(1)] == [True, True, True, False] * 2
    assert (targets[~real][:, 0] == -1).all()
    for row, column in real.nonzero().tolist():
        label, x1, y1, x2, y2 = targets[row, column].int().tolist()
        assert 0 <= label < 5
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 48
        mask = unpacked(masks)[row, column]
        assert mask[y1:y2, x1:x2].all()
        assert int(mask.sum()) == (y2 - y1) * (x2 - x1)
    assert not unpacked(masks)[:, :4][~real].any()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"augment": AugmentConfig(mixup=0.2)}, "--mixup"),
        ({"augment": AugmentConfig(cutmix=1.0)}, "--cutmix"),
        ({"augment": AugmentConfig(rotate=10.0)}, "--rotate"),
        ({"augment": AugmentConfig(resized_crop=(0.5, 1.0))}, "--resized-crop"),
        ({"input": InputConfig(crop_padding=2)}, "--crop-padding"),
        ({"input": InputConfig(balance=True)}, "--balance"),
        ({"optim": OptimConfig(label_smoothing=0.1)}, "--label-smoothing"),
        ({"strategy": "dp"}, "--strategy dp"),
    ],
)
def test_options_that_mean_nothing_to_boxes_are_refused(
    options: dict[str, Any], flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = few_shapes(monkeypatch)
    TASK.check(TrainConfig(), dataset)
    with pytest.raises(Mistake, match=flag):
        TASK.check(TrainConfig(**options), dataset)


def test_data_without_boxes_or_without_masks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = few_shapes(monkeypatch)
    classes = replace(dataset, train=replace(dataset.train, labels=np.zeros(12, dtype=np.int64)))
    with pytest.raises(Mistake, match="expected data with boxes for a detector"):
        TASK.check(TrainConfig(), classes)

    def work(ctx: DistContext) -> None:
        with pytest.raises(Mistake, match="expected data with a mask of each object"):
            TASK.make_loaders(TrainConfig(), replace(dataset, planes=0), ctx, tiny_maskrcnn())

    run_ranks(work, 1)


def test_a_trained_mask_rcnn_is_evaluated_for_boxes_and_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = few_shapes(monkeypatch)

    def work(ctx: DistContext) -> dict[str, Any]:
        trainer = trainer_of(tiny_maskrcnn(), ctx)
        return TASK.evaluate(trainer, TASK.make_loaders(trainer.config, dataset, ctx, trainer.module)[1]).numbers

    numbers = run_ranks(work, 1)[0]
    assert set(numbers) == {"test_samples"} | {f"test_{m}ap{k}" for m in ("", "mask_") for k in ("", "50", "75")}
    assert all(0 <= value < 0.2 for name, value in numbers.items() if name != "test_samples")
