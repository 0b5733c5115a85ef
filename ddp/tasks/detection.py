"""Detection: boxes and classes of the objects in an image, with masks if model and data have them; COCO's AP.

A model gives losses in training, from images and targets, and detections in evaluation, as torchvision's do. Losses
float [N], one for each sample, make the step exact however unequal the ranks' shares are. A dict of losses is a mean
over this rank's samples, which is torchvision's way, and counts for each of them.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ddp.boxes import BoxLoader, target_dicts, unpacked
from ddp.coco_ap import COLUMNS, CROWD, Instances, Precision, available, average_precision, compressed
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.loader import Batch, Loader
from ddp.mistake import require
from ddp.precision import autocast
from ddp.source import Dataset, Shape
from ddp.task import Outcome, Task

if TYPE_CHECKING:
    from ddp.trainer import Trainer

MOST_RANDOM = 4
"""Boxes of a random sample at most; every fourth has none."""
NOT_COMPUTED = "AP was not computed: pycocotools does that, install it by pip install pycocotools"


class Detection(Task):
    """Targets float32 [N, M, 5] of class, x1, y1, x2, y2; masks uint8 [N, planes, H, W], a bit for each instance."""

    metric = "AP50"

    def check(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise Mistake unless the data has boxes, and for options that would not move them or mean nothing here."""
        labels = dataset.train.labels
        require(
            labels.ndim == 3 and labels.shape[2] == 5,
            "data with boxes for a detector",
            f"--data {config.input.data}",
            "try --data shapes-boxes, or a model for that data",
        )
        augment, given = config.augment, config.input
        for flag, value, why in (
            ("--mixup", augment.mixup, "boxes are not blended"),
            ("--cutmix", augment.cutmix, "boxes are not blended"),
            ("--resized-crop", augment.resized_crop, "boxes would stay where they were"),
            ("--rotate", augment.rotate, "boxes would stay where they were"),
            ("--crop-padding", given.crop_padding, "boxes would stay where they were; mirroring moves them"),
            ("--label-smoothing", config.optim.label_smoothing, "objects and their classes are told apart separately"),
            ("--balance", given.balance, "an image may hold several classes"),
        ):
            require(not value, f"no {flag} in detection: {why}", value, f"leave {flag} out")
        require(
            config.strategy != "dp",
            "a strategy that leaves lists of boxes whole",
            "--strategy dp",
            "use --strategy ddp or single",
        )

    def make_loaders(
        self, config: TrainConfig, dataset: Dataset, ctx: DistContext, module: nn.Module
    ) -> tuple[Loader, Loader]:
        """Loaders that mirror boxes with their images. Raises Mistake if the model wants masks that are not there."""
        require(
            bool(dataset.planes) or not _uses_masks(module),
            "data with a mask of each object for a model that learns masks",
            f"--data {config.input.data}",
            "try --data shapes-boxes or coco-masks, or a model of boxes alone",
        )
        train, test = super().make_loaders(config, dataset, ctx, module)
        return BoxLoader(**vars(train)), BoxLoader(**vars(test))

    def losses(self, trainer: "Trainer", batch: Batch) -> Tensor:
        """The model's own loss of each sample, or the sum of its means over this rank's samples for each of them."""
        padded = bool(getattr(trainer.module, "padded_targets", False))
        targets = target_dicts(batch, padded=padded, masks=_uses_masks(trainer.module))
        found: Any = trainer.forward(batch.inputs, targets)
        if isinstance(found, Tensor):
            return found
        return torch.stack(list(found.values())).sum().expand(len(targets))

    def random_batch(
        self, shape: Shape, classes: int, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normal inputs, one to four boxes in three of four samples, none in the fourth, and their masks."""
        height, width = shape[1:]
        inputs = torch.randn(samples, *shape, generator=generator)
        edges = torch.rand(samples, MOST_RANDOM, 4, generator=generator)
        first, size = edges[..., :2] * 0.5, 0.25 + edges[..., 2:] * 0.25
        boxes = (torch.cat([first, first + size], dim=2) * torch.tensor([width, height, width, height])).round()
        labels = torch.randint(classes, (samples, MOST_RANDOM), generator=generator)
        counts = torch.randint(1, MOST_RANDOM + 1, (samples,), generator=generator)
        counts = counts * (torch.arange(samples) % MOST_RANDOM != MOST_RANDOM - 1)
        real = torch.arange(MOST_RANDOM) < counts[:, None]
        targets = torch.cat([labels[..., None].float(), boxes], dim=2).where(real[..., None], torch.zeros(()))
        targets[..., 0].masked_fill_(~real, -1)
        x1, y1, x2, y2 = targets[..., 1:, None, None].unbind(2)
        x, y = torch.arange(width), torch.arange(height)[:, None]
        masks = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        bits = 2 ** torch.arange(MOST_RANDOM).view(-1, 1, 1)
        return inputs, targets, (masks * bits).sum(1, keepdim=True).to(torch.uint8)

    @torch.no_grad()
    def evaluate(self, trainer: "Trainer", loader: Loader) -> Outcome:
        """AP of boxes, and of masks if the model finds them; unknown on all ranks if one of them lacks pycocotools."""
        ctx, module, samples = trainer.ctx, trainer.module, len(loader.labels)
        masks = _uses_masks(module)
        if not all(ctx.gather(available())):
            return _outcome(samples, [None, None] if masks else [None])
        module.eval()
        truth, found = _Tally(masks), _Tally(masks)
        for batch in loader:
            with autocast(trainer.config.amp, ctx.device):
                detections = module(batch.inputs)
            _add(truth, found, batch, detections)
        counted = int(ctx.sum(torch.tensor(truth.samples, device=ctx.device)))
        loader.check_counted(counted)
        both = [tally.of_all_ranks(ctx) for tally in (truth, found)]
        height, width = loader.dataset.shape[1:]
        kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if masks else ("bbox",)
        mine = None
        if ctx.is_main:
            mine = [asdict(average_precision(both[0], both[1], samples, (height, width), kind)) for kind in kinds]
        return _outcome(samples, [Precision(**each) for each in ctx.patient.gather(mine)[0]])


def _uses_masks(module: nn.Module) -> bool:
    return bool(getattr(module, "uses_masks", False))


class _Tally:
    """The objects of one rank's images, as rows of `Instances`."""

    def __init__(self, masks: bool) -> None:
        self.rows: list[Tensor] = []
        self.masks: list[bytes] | None = [] if masks else None
        self.samples = 0

    def add(self, image: int, columns: tuple[Tensor, Tensor, Tensor], masks: Tensor | None) -> None:
        """Labels [k], scores [k] and boxes [k, 4] of one image, with masks [k, H, W] of 0 or 1."""
        labels, scores, boxes = columns
        images = torch.full_like(labels, image, dtype=torch.float64)
        numbers = torch.stack([images, labels.double(), scores.double()], dim=1)
        self.rows.append(torch.cat([numbers, boxes.double()], dim=1).cpu())
        if self.masks is not None and masks is not None and len(masks):
            self.masks += compressed(masks.cpu().numpy())
        self.samples += 1

    def of_all_ranks(self, ctx: DistContext) -> Instances:
        """Everybody's objects, ordered by image, the same at any number of ranks. Every rank must call this."""
        mine = torch.cat(self.rows) if self.rows else torch.zeros(0, COLUMNS, dtype=torch.float64)
        rows = _joined(mine, ctx)
        order = np.argsort(rows[:, 0], kind="stable")
        if self.masks is None:
            return Instances(rows[order], None)
        lengths = _joined(torch.tensor([len(mask) for mask in self.masks], dtype=torch.int64), ctx)
        text = _joined(torch.tensor(list(b"".join(self.masks)), dtype=torch.uint8), ctx).tobytes()
        ends = np.cumsum(lengths)
        masks = [text[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
        return Instances(rows[order], [masks[place] for place in order])


def _joined(mine: Tensor, ctx: DistContext) -> np.ndarray:
    """Every rank's rows [k, ...], one rank after the other, on every rank: a sum with zeros elsewhere."""
    counts = ctx.gather(len(mine))
    if not sum(counts):
        return mine.numpy()
    whole = torch.zeros(sum(counts), *mine.shape[1:], dtype=mine.dtype, device=ctx.device)
    start = sum(counts[: ctx.rank])
    whole[start : start + len(mine)] = mine.to(ctx.device)
    return ctx.sum(whole).cpu().numpy()


def _add(truth: _Tally, found: _Tally, batch: Batch, detections: list[dict[str, Tensor]]) -> None:
    """What is there, crowds included, and what was found in each image of a batch."""
    instances = [None] * len(detections) if truth.masks is None or batch.masks is None else unpacked(batch.masks)
    images = zip(batch.indices.tolist(), batch.targets, instances, detections, strict=True)
    for image, target, masks, detected in images:
        there = (target[:, 0] >= 0) | (target[:, 0] <= CROWD)
        rows = target[there]
        own = None if masks is None else masks[: len(target)][there]
        truth.add(image, (rows[:, 0], torch.ones_like(rows[:, 0]), rows[:, 1:]), own)
        shown = detected["masks"][:, 0] > 0.5 if found.masks is not None else None
        found.add(image, (detected["labels"], detected["scores"], detected["boxes"]), shown)


def _outcome(samples: int, precisions: Sequence[Precision | None]) -> Outcome:
    """The AP of boxes and, if there are two, of masks; None: not computed."""
    numbers: dict[str, Any] = {}
    for name, precision in zip(("", "mask_"), precisions, strict=False):
        values = dict.fromkeys(("ap", "ap50", "ap75")) if precision is None else asdict(precision)
        numbers |= {f"test_{name}{key}": value for key, value in values.items()}
    known = {key.removeprefix("test_"): value for key, value in numbers.items() if value is not None}
    shown = ("ap50", "AP50"), ("ap", "AP"), ("mask_ap", "mask AP")
    text = "  ".join(f"{words} {known[key]:.4f}" for key, words in shown if key in known)
    return Outcome(
        score=known.get("ap50"),
        numbers={**numbers, "test_samples": samples},
        text=f"test {text}" if text else "test AP50 unknown",
        curves=known,
        report=NOT_COMPUTED if precisions[0] is None else "",
    )


TASK = Detection()
