"""Evaluation is exact: each sample once, and the same sums to the last bit at any number of ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch import Tensor, nn

from ddp.config import InputConfig
from ddp.context import DistContext
from ddp.evaluate import Evaluation, evaluate
from ddp.loader import Loader, make_loaders
from ddp.sampler import EvalBatches, TrainBatches
from ddp.source import Dataset, array_split
from tests.ranks import run_ranks


def dataset_of(samples: int, classes: int = 10) -> Dataset:
    """Random images with random labels."""
    rng = np.random.default_rng(0)
    split = array_split(rng.integers(0, 256, (samples, 3, 8, 8), dtype=np.uint8), rng.integers(0, classes, samples))
    names = tuple(map(str, range(classes)))
    return Dataset(train=split, test=split, shape=(3, 8, 8), stored=(3, 8, 8), classes=names, flip=False)


def loader_of(dataset: Dataset, ctx: DistContext, batch: int = 4, cache: str = "memory") -> Loader:
    """The test split, dealt to the ranks of a group."""
    place: dict[str, Any] = {"rank": ctx.rank, "world_size": ctx.world_size}
    samples = len(dataset.test)
    shares = (
        TrainBatches(samples=samples, global_batch=samples, seed=0, **place),
        EvalBatches(samples=samples, batch=batch, **place),
    )
    config = InputConfig(cache=cache, workers=1)  # type: ignore[arg-type]
    return make_loaders(config, dataset, shares, ctx, seed=0, channels_last=False)[1]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    module[-1].weight.data *= 40  # losses from 1e-7 to 100: their sum is rounded, so that its order matters
    return module


def evaluation_of(samples: int, world_size: int, cache: str = "memory") -> list[Evaluation]:
    """The evaluation as every rank sees it."""

    def work(ctx: DistContext) -> Evaluation:
        loader = loader_of(dataset_of(samples), ctx, cache=cache)  # 4 a batch: many sums, so that their order matters
        return evaluate(network(), loader, ctx, "off")

    return run_ranks(work, world_size)


def test_1003_samples_give_the_same_sums_and_confusion_at_1_2_3_and_4_ranks() -> None:
    expected = evaluation_of(1003, 1)[0]
    assert expected.samples == sum(map(sum, expected.confusion)) == 1003
    for world_size in (2, 3, 4):
        assert evaluation_of(1003, world_size) == [expected] * world_size


def test_every_count_is_that_of_sklearn_over_all_samples_at_once() -> None:
    def work(ctx: DistContext) -> tuple[list[int], list[list[float]]]:
        module, truth, logits = network(), [], []
        with torch.no_grad():
            for batch in loader_of(dataset_of(203), ctx):
                truth += batch.labels.tolist()
                logits += module(batch.images).tolist()
        return truth, logits

    truth, logits = run_ranks(work, 1)[0]
    for found in evaluation_of(203, 3):
        assert found.correct == sum(np.argmax(logits, 1) == truth)
        assert found.correct == sum(found.confusion[label][label] for label in range(10))
        assert found.top5_correct == top_k_accuracy_score(truth, logits, k=5, normalize=False)
        assert found.top5_accuracy == found.top5_correct / 203
        np.testing.assert_array_equal(found.confusion, confusion_matrix(truth, np.argmax(logits, 1)))
        assert 0 < found.correct < found.top5_correct < 203  # or nothing is compared


class Fixed(nn.Module):
    """The same logits for every sample."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


@pytest.mark.parametrize("largest", [1.0, float("nan")])
def test_of_equal_logits_the_first_win(largest: float) -> None:
    """Half precision makes ties common; a class must not be right because it is as good as all the others."""

    def work(ctx: DistContext) -> Evaluation:
        return evaluate(Fixed(*[largest] * 8), loader_of(dataset_of(64, 8), ctx), ctx, "off")

    of_class = np.bincount(dataset_of(64, 8).test.labels, minlength=8)
    found = run_ranks(work, 1)[0]
    assert found.correct == of_class[0]
    assert found.top5_correct == sum(of_class[:5])


@pytest.mark.parametrize(("classes", "known"), [(5, False), (6, True)])
def test_the_top_5_of_fewer_than_6_classes_are_not_counted(classes: int, known: bool) -> None:
    def work(ctx: DistContext) -> Evaluation:
        return evaluate(Fixed(*range(classes)), loader_of(dataset_of(20, classes), ctx), ctx, "off")

    found = run_ranks(work, 1)[0]
    assert (found.top5_correct is not None) == known
    assert (found.top5_accuracy is not None) == known


@pytest.mark.parametrize("outputs", [9, 11])
def test_a_model_without_one_logit_for_each_class_is_refused_on_ranks_with_and_without_samples(outputs: int) -> None:
    def work(ctx: DistContext) -> None:
        loader = loader_of(dataset_of(3), ctx)
        loader.labels.zero_()  # or the loss itself refuses a label that has no logit
        with pytest.raises(ValueError, match=f"expected a model with 10 outputs, got {outputs}; make one for each"):
            evaluate(Fixed(*range(outputs)), loader, ctx, "off")

    run_ranks(work, 2)


def test_a_test_set_smaller_than_the_ranks_hangs_no_one() -> None:
    assert evaluation_of(4, 4) == [evaluation_of(4, 1)[0]] * 4


def test_images_decoded_by_loader_processes_give_the_same_sums() -> None:
    assert evaluation_of(203, 2, cache="none") == evaluation_of(203, 2)


def test_a_lost_sample_is_an_error() -> None:
    def work(ctx: DistContext) -> None:
        place: dict[str, Any] = {"rank": ctx.rank, "world_size": ctx.world_size}
        shares = (
            TrainBatches(samples=20, global_batch=20, seed=0, **place),
            EvalBatches(samples=19, batch=4, **place),
        )
        _, loader = make_loaders(InputConfig(), dataset_of(20), shares, ctx, seed=0, channels_last=False)
        module = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        with pytest.raises(RuntimeError, match="expected to evaluate 20 samples once each, counted 19"):
            evaluate(module, loader, ctx, "off")

    run_ranks(work, 2)
