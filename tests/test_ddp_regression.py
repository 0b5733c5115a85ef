"""Regression: the gradient and the score of the whole batch and the whole split, however they are shared."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor, nn

from ddp.augment_config import AugmentConfig
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.data import make_loaders
from ddp.datasets import linear, sine
from ddp.fit import fit
from ddp.input_config import InputConfig
from ddp.loader import Batch
from ddp.loop import train_step
from ddp.optim_config import OptimConfig
from ddp.progress import Silent
from ddp.sampler import EvalBatches
from ddp.source import Dataset, array_split, number_split
from ddp.task import Outcome
from ddp.tasks.regression import TASK
from ddp.trainer import Trainer, make_trainer
from tests.ranks import run_ranks

OPTIM = OptimConfig(lr=0.1, schedule="constant", warmup=0)


class Series(nn.Module):
    """[N, T, 2] -> [N, T, 3], float64."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.RNN(2, 8, batch_first=True), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.recurrent(x)[0])
        return output


def trainer_of(module: nn.Module, ctx: DistContext, **options: Any) -> Trainer:
    config = TrainConfig(batch_size=4, optim=OPTIM, **options)
    return make_trainer(module, config, ctx, total_steps=10, task=TASK)


def gradients_of(sizes: list[int], **options: Any) -> list[Tensor]:
    """Gradients of one float64 step on series with several numbers to predict, the same on all ranks."""

    def work(ctx: DistContext) -> list[Tensor]:
        torch.manual_seed(ctx.rank)
        trainer = trainer_of(Series(), ctx, **options)
        with torch.no_grad():
            for number, parameter in enumerate(trainer.module.parameters()):
                parameter.copy_(torch.linspace(-1, 1 + number, parameter.numel()).view_as(parameter))
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(sum(sizes), 5, 2, dtype=torch.float64, generator=generator)
        targets = torch.randn(sum(sizes), 5, 3, dtype=torch.float64, generator=generator)
        mine = slice(sum(sizes[: ctx.rank]), sum(sizes[: ctx.rank + 1]))
        train_step(trainer, Batch(inputs[mine], targets[mine], sum(sizes), torch.arange(sum(sizes))[mine]))
        return [each.grad.clone() for each in trainer.module.parameters() if each.grad is not None]

    results = run_ranks(work, len(sizes))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)
    return results[0]


@pytest.mark.parametrize("sizes", [[7, 5], [11, 1], [9, 2, 1]])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_that_of_the_whole_batch_however_it_is_shared(sizes: list[int], accumulate: int) -> None:
    """Breaks if a rank's loss is the mean over its own samples."""
    found, expected = gradients_of(sizes, accumulate=accumulate), gradients_of([12])
    assert len(found) == 6
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_loss_of_a_sample_is_the_mean_of_its_squared_errors() -> None:
    def work(ctx: DistContext) -> list[float]:
        trainer = trainer_of(Zero(), ctx)
        targets = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
        batch = Batch(torch.zeros(2, 1, 2), targets, 2, torch.arange(2))
        losses: list[float] = TASK.losses(trainer, batch).tolist()
        return losses

    assert run_ranks(work, 1) == [[2.5, 4.5]]


class Zero(nn.Module):
    """Zeros of the inputs' shape."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def dataset_of(samples: int, outputs: int = 2) -> Dataset:
    """Numbers whose errors are of very different sizes: their sum is rounded, so that its order matters."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((samples, 3)) * 10 ** rng.uniform(-4, 2, (samples, 1))
    targets = (inputs @ rng.standard_normal((3, outputs)) + 5 * np.arange(outputs)).astype(np.float32)
    split = number_split(inputs, targets)
    names = tuple(map(str, range(outputs)))
    return Dataset(train=split, test=split, shape=(3,), stored=(3,), classes=names)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))


def outcomes_of(dataset: Dataset, world_size: int, module: nn.Module | None = None) -> list[Outcome]:
    """The evaluation as every rank sees it, 4 samples a batch."""

    def work(ctx: DistContext) -> Outcome:
        trainer = trainer_of(network() if module is None else module, ctx, eval_batch_size=4)
        return TASK.evaluate(trainer, make_loaders(trainer.config, dataset, ctx)[1])

    return run_ranks(work, world_size)


def test_403_samples_give_the_same_sums_at_1_2_3_and_4_ranks() -> None:
    """Breaks if shares are padded, if ranks are averaged, or if sums are rounded rank by rank."""
    dataset = dataset_of(403)
    expected = outcomes_of(dataset, 1)[0]
    assert expected.numbers["test_samples"] == 403
    for world_size in (2, 3, 4):
        assert outcomes_of(dataset, world_size) == [expected] * world_size


def test_the_score_is_that_of_sklearn_over_all_samples_at_once() -> None:
    dataset = dataset_of(203)
    module = network()
    with torch.no_grad():
        outputs = module(torch.from_numpy(dataset.test.inputs)).double().numpy()
    targets = dataset.test.labels.astype(np.float64)
    found = outcomes_of(dataset, 3)[0]
    assert found.score == pytest.approx(r2_score(targets, outputs, multioutput="variance_weighted"), abs=1e-6)
    assert found.numbers["test_loss"] == pytest.approx(((outputs - targets) ** 2).mean(), rel=1e-6)
    assert found.score == 1 - found.numbers["test_sse"] / found.numbers["test_sst"]
    assert found.curves == {"loss": found.numbers["test_loss"], "R2": found.score}


def test_a_test_set_smaller_than_the_ranks_hangs_no_one_and_equal_targets_have_no_score() -> None:
    split = number_split(np.zeros((3, 2)), np.full((3, 2), 4, dtype=np.float32))
    dataset = Dataset(train=split, test=split, shape=(2,), stored=(2,), classes=("a", "b"))

    def work(ctx: DistContext) -> Outcome:
        trainer = trainer_of(Zero(), ctx, eval_batch_size=3)
        trainer.config = TrainConfig(batch_size=1, eval_batch_size=3)
        return TASK.evaluate(trainer, make_loaders(trainer.config, dataset, ctx)[1])

    for found in run_ranks(work, 3):
        assert found.numbers == {"test_loss": 16.0, "test_sse": 96.0, "test_sst": 0.0, "test_samples": 3}
        assert found.score is None
        assert found.text == "test loss 16.0000  test R2 unknown"


def test_a_lost_sample_is_an_error() -> None:
    def work(ctx: DistContext) -> None:
        trainer = trainer_of(network(), ctx)
        loader = make_loaders(trainer.config, dataset_of(20), ctx)[1]
        loader.shares = EvalBatches(samples=19, batch=4, rank=ctx.rank, world_size=ctx.world_size)
        with pytest.raises(RuntimeError, match="expected to evaluate 20 samples once each, counted 19"):
            TASK.evaluate(trainer, loader)

    run_ranks(work, 2)


def test_a_model_without_one_output_for_each_target_is_refused() -> None:
    """Breaks if [N, 1] may be compared with [N, 2], which would broadcast and train something else."""

    def work(ctx: DistContext) -> None:
        trainer = trainer_of(nn.Linear(3, 1), ctx)
        batch = Batch(torch.zeros(4, 3), torch.zeros(4, 2), 4, torch.arange(4))
        with pytest.raises(ValueError, match=r"outputs of the targets' shape, \(4, 2\), for regression, got \(4, 1\)"):
            TASK.losses(trainer, batch)

    run_ranks(work, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": AugmentConfig(mixup=0.2)}, r"no --mixup with regression, which blends classes, got 0\.2"),
        ({"augment": AugmentConfig(cutmix=1.0)}, r"no --cutmix with regression, which blends classes"),
        ({"optim": OptimConfig(label_smoothing=0.1)}, "no --label-smoothing with regression, which is about classes"),
        ({"input": InputConfig(balance=True)}, "no --balance with regression, which is about classes"),
        ({"augment": AugmentConfig(rotate=10)}, "no --rotate with numbers, which are no images, got 10; omit it"),
        ({"augment": AugmentConfig(resized_crop=(0.5, 1))}, "no --resized-crop with numbers, which are no images"),
        ({"input": InputConfig(augment="crop")}, "no --augment with numbers, which are no images, got crop"),
        ({"input": InputConfig(image_size=8)}, "no --image-size with numbers, which are no images, got 8"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.check(TrainConfig(**options), dataset_of(4))


def test_data_with_classes_is_refused_and_data_with_numbers_is_not() -> None:
    split = array_split(np.zeros((4, 1, 8, 8), dtype=np.uint8), [0, 1, 2, 3])
    images = Dataset(train=split, test=split, shape=(1, 8, 8), stored=(1, 8, 8), classes=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="expected data with numbers to predict for regression, got --data digits"):
        TASK.check(TrainConfig(input=InputConfig(data="digits")), images)
    TASK.check(TrainConfig(), dataset_of(4))


@pytest.mark.parametrize(("shape", "expected"), [((13,), (2,)), ((50, 1), (50, 2)), ((3, 8, 8), (2,))])
def test_a_random_batch_has_the_shape_that_a_model_must_give(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert TASK.output_shape(shape, 2) == expected
    inputs, targets, masks = TASK.random_batch(shape, 2, 6, torch.Generator())
    assert (inputs.shape, targets.shape, masks) == ((6, *shape), (6, *expected), None)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_line_is_found(ranks: int) -> None:
    """The whole way from the data set to the score; the weights are those that the numbers were made with."""
    dataset = linear.load(InputConfig(data="linear"), (5,), 2)
    config = TrainConfig(epochs=2, batch_size=24, optim=OptimConfig(lr=0.2))

    def work(ctx: DistContext) -> tuple[float, Tensor]:
        torch.manual_seed(0)
        module = nn.Linear(5, 2)
        done = fit(module, dataset, config, ctx, Silent(), TASK)
        return done.epochs[-1]["test_score"], module.weight.detach().T

    for score, weights in run_ranks(work, ranks):
        assert 0.985 < score < 0.995
        torch.testing.assert_close(weights.double(), torch.from_numpy(linear.weights_of(5, 2)), rtol=0, atol=0.02)


def test_a_wave_is_a_function_of_its_index_and_its_targets_are_its_cosines() -> None:
    one, other = (sine.load(InputConfig(data="sine"), shape, 1) for shape in ((20, 1), (20, 1)))
    assert (one.shape, sine.load(InputConfig(data="sine"), (13,), 1).shape) == ((20, 1), (50, 1))
    assert one.train.inputs is not None
    assert other.train.inputs is not None
    assert one.test.inputs is not None
    assert len(one.train) == sine.count(InputConfig())
    assert np.array_equal(one.train.inputs, other.train.inputs)
    assert not np.allclose(one.train.inputs[0], one.train.inputs[1])
    assert not np.allclose(one.train.inputs[0], one.test.inputs[0])
    np.testing.assert_allclose(one.train.inputs**2 + one.train.labels**2, 1, atol=1e-6)
    angle = np.unwrap(np.arctan2(one.train.inputs, one.train.labels), axis=1)
    waves = (angle[:, -1] - angle[:, 0]) / (2 * np.pi) * 20 / 19
    assert waves.min() > 1
    assert waves.max() < 3
