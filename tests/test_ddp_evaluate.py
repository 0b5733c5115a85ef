"""Evaluation is exact: each sample once, and the same sums to the last bit at any number of ranks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.data import make_loaders
from ddp.evaluate import Evaluation, evaluate
from ddp.fit import fit
from ddp.input_config import InputConfig
from ddp.loader import Loader
from ddp.optim_config import OptimConfig
from ddp.parallel_config import ParallelConfig
from ddp.progress import Silent
from ddp.sampler import EvalBatches
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
    images = InputConfig(cache=cache, workers=1)  # type: ignore[arg-type]
    return make_loaders(TrainConfig(batch_size=1, eval_batch_size=batch, input=images), dataset, ctx)[1]


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
    """T8. Breaks if shares are padded, if ranks are averaged, or if sums are rounded rank by rank."""
    expected = evaluation_of(1003, 1)[0]
    assert expected.samples == sum(map(sum, expected.confusion)) == 1003
    for world_size in (2, 3, 4):
        assert evaluation_of(1003, world_size) == [expected] * world_size


def test_every_count_is_that_of_sklearn_over_all_samples_at_once() -> None:
    def work(ctx: DistContext) -> tuple[list[int], list[list[float]]]:
        module, truth, logits = network(), [], []
        with torch.no_grad():
            for batch in loader_of(dataset_of(203), ctx):
                truth += batch.targets.tolist()
                logits += module(batch.inputs).tolist()
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
    """T9. Breaks if a batch of evaluation needs other ranks, of which all but one have none."""
    assert evaluation_of(4, 4) == [evaluation_of(4, 1)[0]] * 4


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run_whose_test_set_is_smaller_than_the_ranks_evaluates_it_on_all_of_them(ranks: int) -> None:
    """T9. Breaks if the model is evaluated in its wrapper, which sends buffers to ranks that have nothing to do."""
    parallel = ParallelConfig(broadcast_buffers=True)
    config = TrainConfig(epochs=2, batch_size=1, eval_batch_size=4, parallel=parallel, optim=OptimConfig(lr=0.01))

    def work(ctx: DistContext) -> list[int]:
        module = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10))
        return [epoch["test_samples"] for epoch in fit(module, dataset_of(4), config, ctx, Silent()).epochs]

    assert run_ranks(work, ranks) == [[4, 4]] * ranks


def test_images_decoded_by_loader_processes_give_the_same_sums() -> None:
    assert evaluation_of(203, 2, cache="none") == evaluation_of(203, 2)


def test_a_lost_sample_is_an_error() -> None:
    def work(ctx: DistContext) -> None:
        loader = loader_of(dataset_of(20), ctx)
        loader.shares = EvalBatches(samples=19, batch=4, rank=ctx.rank, world_size=ctx.world_size)
        module = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        with pytest.raises(RuntimeError, match="expected to evaluate 20 samples once each, counted 19"):
            evaluate(module, loader, ctx, "off")

    run_ranks(work, 2)
