"""Counted arithmetic against formulas by hand, and against the figures that torchvision publishes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from bench.flops import training_flop
from models import zoo
from models.spec import ModelSpec, Shape


def spec(module: Callable[[], nn.Module], shape: Shape, task: str = "classification") -> ModelSpec:
    return ModelSpec(
        name="mine", build=lambda *_: module(), shape=shape, classes=5, parameters=None, source="", task=task
    )


class Pooled(nn.Module):
    """A layer in front of the mean over all positions."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(2).mean(2)


def counted(module: Callable[[], nn.Module], *shape: int) -> float | None:
    return training_flop(spec(module, shape), shape, 5)


def test_a_linear_layer_takes_its_product_twice() -> None:
    # the inputs are data, so there is no gradient of them: one product forward, one for the weights
    assert counted(lambda: nn.Linear(7, 5), 7) == 2 * 2 * 7 * 5
    assert counted(lambda: nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5)), 7) == 4 * 7 * 6 + 6 * 6 * 5


@pytest.mark.parametrize("groups", [1, 2, 10])
def test_convolutions_have_the_cost_of_their_groups(groups: int) -> None:
    """torch's own formula counts the gradient of the weights once for every group."""
    one = 2 * (20 // groups) * 20 * 9 * 64
    first = 2 * 3 * 20 * 64

    def net() -> nn.Module:
        return Pooled(nn.Conv2d(3, 20, 1), nn.Conv2d(20, 20, 3, padding=1, groups=groups), nn.Conv2d(20, 5, 1))

    assert counted(net, 3, 8, 8) == 2 * first + 3 * one + 3 * 2 * 20 * 5 * 64


@pytest.mark.parametrize("groups", [1, 4])
def test_a_transposed_convolution_works_at_each_position_of_its_input(groups: int) -> None:
    one = 2 * 8 * (16 // groups) * 16 * 64
    first, last = 2 * 3 * 8 * 64, 2 * 16 * 5 * 256

    def net() -> nn.Module:
        up = nn.ConvTranspose2d(8, 16, 4, stride=2, padding=1, groups=groups)
        return Pooled(nn.Conv2d(3, 8, 1), up, nn.Conv2d(16, 5, 1))

    assert counted(net, 3, 8, 8) == 2 * first + 3 * one + 3 * last


class Recurrent(nn.Module):
    """The last step of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(6, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


def test_recurrent_layers_are_counted_step_by_step() -> None:
    steps = 9
    inward, onward, head = 2 * 6 * 64 * steps, 2 * 16 * 64 * steps, 2 * 16 * 5
    # no gradient of the inputs, nor of the state before the first step
    assert counted(Recurrent, steps, 6) == 2 * inward + 3 * onward - onward // steps + 3 * head


class NeedsNumbers(Recurrent):
    """Asks for the numbers in a tensor, which meta tensors have not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.abs().sum().item() > 0 else x


class LinearThatNeedsNumbers(nn.Linear):
    """The same without a recurrent layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.abs().sum().item() > 0 else x


def test_what_needs_numbers_is_counted_on_the_cpu_and_kernels_that_hide_their_products_are_not() -> None:
    assert counted(lambda: LinearThatNeedsNumbers(7, 5), 7) == 2 * 2 * 7 * 5
    assert counted(NeedsNumbers, 9, 6) is None
    assert counted(lambda: nn.Linear(8, 5), 7) is None  # does not run at all


# Of the first layer, whose input's gradient is not computed: channels in x out x kernel x positions out
FIRST = {
    "resnet18": 3 * 64 * 49 * 112 * 112,
    "mobilenet_v2": 3 * 32 * 9 * 112 * 112,
    "vit_b_16": 3 * 768 * 256 * 14 * 14,
}


@pytest.mark.parametrize("name", FIRST)
def test_published_figures_are_met(name: str) -> None:
    """torchvision publishes 1e9 multiply-adds of the forward pass; the backward pass computes two gradients."""
    forward_macs = get_model_weights(name).DEFAULT.meta["_ops"] * 1e9
    found = zoo.find(name)
    flop = training_flop(found, found.shape, found.classes)
    assert flop == pytest.approx(2 * (3 * forward_macs - FIRST[name]), rel=2e-3)


@pytest.mark.parametrize("name", ["dcgan-digits", "vae", "linear-regression"])
def test_other_tasks_are_counted_with_their_own_losses(name: str) -> None:
    found = zoo.find(name)
    flop = training_flop(found, found.shape, found.classes)
    assert flop is not None
    if name == "linear-regression":
        assert flop == 2 * 2 * 13
    if name == "vae":  # 784-400-20+20, 20-400-784: no gradient of the inputs
        assert flop == 2 * (3 * (784 * 400 + 400 * 40 + 20 * 400 + 400 * 784) - 784 * 400)


def test_counting_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    counted(lambda: LinearThatNeedsNumbers(7, 5), 7)
    assert torch.equal(torch.rand(1), expected)
