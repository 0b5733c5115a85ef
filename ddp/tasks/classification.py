"""Classification: one class for each sample, cross-entropy, accuracy."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ddp.config import TrainConfig
from ddp.evaluate import evaluate
from ddp.loader import Batch, Loader
from ddp.metrics import classification_report
from ddp.mistake import require
from ddp.numbers import check_numbers
from ddp.source import Dataset, Shape
from ddp.task import Outcome, Task

if TYPE_CHECKING:
    from ddp.trainer import Trainer

LARGEST_REPORT = 50
"""Classes up to which the report of every class is shown at the end of a run."""


class Classification(Task):
    """Logits [N, classes] against classes int64 [N]."""

    metric = "accuracy"

    def check(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise Mistake unless the data has one class for each sample."""
        labels = dataset.train.labels
        require(
            labels.ndim == 1 and labels.dtype.kind in "iu" and not dataset.planes,
            "data with one class for each sample for a classifier",
            f"--data {config.input.data}",
            "choose other data, or a model for that data",
        )
        check_numbers(config, dataset)

    def losses(self, trainer: "Trainer", batch: Batch) -> Tensor:
        """Cross-entropy of each sample; of a blend of two samples, the blend of their losses."""
        logits, smoothing = trainer.forward(batch.inputs), trainer.config.optim.label_smoothing
        losses = cross_entropy(logits, batch.targets, reduction="none", label_smoothing=smoothing)
        if batch.mix is None:
            return losses
        others = cross_entropy(logits, batch.mix.labels, reduction="none", label_smoothing=smoothing)
        return losses.lerp(others, batch.mix.share.to(losses.dtype))

    def output_shape(self, shape: Shape, classes: int) -> tuple[int, ...]:
        """One logit for each class."""
        return (classes,)

    def random_batch(
        self, shape: Shape, classes: int, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normal inputs [N, *shape] and uniform classes int64 [N]."""
        inputs = torch.randn(samples, *shape, generator=generator)
        return inputs, torch.randint(classes, (samples,), generator=generator), None

    def shown(self, score: float) -> str:
        """In percent of the samples."""
        return f"{score:.2%}"

    def evaluate(self, trainer: "Trainer", loader: Loader) -> Outcome:
        """Accuracy and mean cross-entropy."""
        found = evaluate(trainer.module, loader, trainer.ctx, trainer.config.amp)
        classes = loader.dataset.classes
        return Outcome(
            score=found.accuracy,
            numbers={
                "test_loss": found.loss,
                "test_correct": found.correct,
                "test_top5_correct": found.top5_correct,
                "test_samples": found.samples,
            },
            text=f"test loss {found.loss:.4f}  test accuracy {found.accuracy:.2%}",
            curves={"loss": found.loss, "accuracy": found.accuracy},
            confusion=found.confusion,
            report=classification_report(found.confusion, classes) if len(classes) <= LARGEST_REPORT else "",
        )


TASK = Classification()
