"""Gradient checks: right backward passes pass, wrong ones fail under their own name, and kinks do not fail."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from models import zoo
from models.gradcheck import ALL, Check, check_gradients, smallest_build
from models.spec import ModelMistake, ModelSpec

SHAPE = (1, 4, 4)


class Gain(torch.autograd.Function):
    """x [N, D] times a weight [D]; the weight's gradient comes times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.factor = factor
        return x * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return grads[0] * weight, ctx.factor * (grads[0] * x).sum(0), None


class Net(nn.Module):
    """With BatchNorm, kinks, dropout as a layer and as a function, and a backward pass written by hand."""

    def __init__(self, factor: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.gain = nn.Parameter(torch.rand(12) + 0.5)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(12, 5)
        self.factor, self.scale = factor, scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu().flatten(1)
        x = dropout(self.drop(x), 0.1, self.training)
        return self.out(Gain.apply(x, self.gain, self.factor)) * self.scale


def checked(module: nn.Module, **options: Any) -> dict[str, Check]:
    return {check.name: check for check in check_gradients(module, SHAPE, **{"batch_size": 4, **options})}


def wrong(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if not check.good]


@pytest.mark.parametrize("seed", range(3))
def test_right_gradients_pass_for_every_parameter_and_all_together(seed: int) -> None:
    checks = checked(Net(), seed=seed)
    assert list(checks) == ["gain", "conv.weight", "conv.bias", "bn.weight", "bn.bias", "out.weight", "out.bias", ALL]
    assert wrong(checks) == []
    assert checks["conv.weight"].shape == (3, 1, 3, 3)
    assert checks[ALL].shape == (12 + 27 + 3 + 3 + 3 + 60 + 5,)
    assert all(check.error < 1e-5 for check in checks.values())
    # BatchNorm takes out what a bias before it adds: the gradient is zero, and nothing is shown by that
    assert [name for name, check in checks.items() if not check.measurable] == ["conv.bias"]


@pytest.mark.parametrize("factor", [2.0, 1.01, -1.0, 0.0])
def test_a_wrong_factor_in_a_backward_pass_is_found_under_its_name(factor: float) -> None:
    checks = checked(Net(factor))
    assert set(wrong(checks)) - {ALL} == {"gain"}
    assert checks["gain"].error == pytest.approx(abs(factor - 1) / max(1, abs(factor)), rel=1e-3)


@pytest.mark.parametrize("factor", [2.0, 1.0])
def test_a_small_derivative_is_tried_with_a_longer_step(factor: float) -> None:
    checks = checked(Net(factor, scale=1e-4))
    assert wrong(checks) == ([] if factor == 1 else ["gain", ALL])
    assert checks["gain"].measurable == (factor == 1)


def test_rounding_errors_at_a_small_step_do_not_acquit_a_wrong_derivative() -> None:
    assert "gain" in wrong(checked(Net(factor=2.0, scale=1e-5)))


def test_a_parameter_without_a_gradient_is_a_finding() -> None:
    module = Net()
    module.idle = nn.Parameter(torch.ones(3))
    checks = checked(module)
    assert wrong(checks) == ["idle"]
    assert checks["idle"].autograd is None
    assert checks["idle"].difference == 0


def test_a_gradient_that_is_not_finite_is_a_finding() -> None:
    checks = checked(Net(math.inf))
    assert wrong(checks) == ["gain", ALL]
    assert math.isinf(checks["gain"].error)


def test_frozen_parameters_are_left_out_and_all_values_come_back() -> None:
    module = Net().double()
    module.bn.requires_grad_(False)
    before = [parameter.clone() for parameter in module.parameters()]
    state = torch.get_rng_state()
    assert "bn.weight" not in checked(module)
    assert all(map(torch.equal, module.parameters(), before))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("away", [5e-7, 5e-8])
def test_a_kink_next_to_a_weight_does_not_fail_it(away: float) -> None:
    class Kinks(nn.Linear):
        def __init__(self) -> None:
            super().__init__(16, 5)
            self.hinge = nn.Parameter(torch.full((5,), away))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)) + 10 * self.hinge.relu()

    torch.manual_seed(0)
    checks = checked(Kinks())
    assert wrong(checks) == []
    assert checks["hinge"].measurable


def test_a_model_that_does_not_run_in_float64_is_refused() -> None:
    class Single(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1).float())

    with pytest.raises(ModelMistake, match="expected a model that trains in float64 on the CPU, got an error"):
        checked(Single(16, 5))


def test_a_large_model_is_checked_at_the_smallest_size_it_works_on() -> None:
    def build(shape: tuple[int, int, int], classes: int) -> nn.Module:
        if shape[1] % 32 or shape[1] < 96:
            raise ValueError(shape)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))

    large = ModelSpec(name="large", build=build, shape=(3, 224, 224), classes=7, parameters=None, source="here")
    assert smallest_build(large)[1] == (3, 96, 96)
    assert smallest_build(large, 128)[1] == (3, 128, 128)
    assert smallest_build(zoo.find("convnet"))[1] == (1, 8, 8)
