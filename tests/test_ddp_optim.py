"""Optimizers that do what torch's plain ones do, penalties, and schedules that depend on nothing but the step."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ddp.optim import OPTIMIZERS, add_l1, lr_factor, make_optimizer, make_scheduler, scaled_lr
from ddp.optim_config import OptimConfig

DECAY = {"lr": 0.01, "weight_decay": 0.05}
PLAIN: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, momentum=0.8, nesterov=True, foreach=False, **DECAY),
    "adam": lambda parameters: torch.optim.Adam(parameters, foreach=False, **DECAY),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, foreach=False, **DECAY),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, foreach=False, **DECAY),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, foreach=False, **DECAY),
    "asgd": lambda parameters: torch.optim.ASGD(parameters, foreach=False, **DECAY),
}
SCHEDULES = ("linear", "cosine", "constant", "step", "multistep", "one-cycle")


def config_of(**options: Any) -> OptimConfig:
    return OptimConfig(**options)


def network() -> nn.Sequential:
    """A convolution, normalisation and a linear layer, with the same weights at each call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def trained(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[Tensor]:
    """Parameters after some updates from random gradients, the same at each call."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in module.parameters()]


def factors(total_steps: int, **options: Any) -> list[float]:
    factor = lr_factor(config_of(**options), total_steps)
    return [factor(step) for step in range(total_steps)]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_averages_keep_what_the_option_says(name: Any) -> None:
    optimizer = make_optimizer(config_of(optimizer=name, betas=(0.5, 0.9)), nn.Linear(2, 2))
    assert [group["betas"] for group in optimizer.param_groups] == [(0.5, 0.9)]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_updates_as_the_plain_one_of_torch_does(name: str) -> None:
    ours, plain = network(), network()
    optimizer = make_optimizer(config_of(optimizer=name, momentum=0.8, **DECAY), ours)
    start = [parameter.detach().clone() for parameter in ours.parameters()]
    expected = trained(plain, PLAIN[name](plain.parameters()))
    torch.testing.assert_close(trained(ours, optimizer), expected, rtol=0, atol=1e-6)
    assert (
        max(float((a - b).abs().max()) for a, b in zip(start, expected, strict=True)) > 1e-3
    )  # or nothing is compared


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_fused_form_is_used_where_torch_has_one(name: str) -> None:
    optimizer = make_optimizer(config_of(optimizer=name), network())
    expected = "foreach" if name in ("rmsprop", "asgd") else "fused"
    assert optimizer.param_groups[0][expected] is True


def test_nesterov_can_be_switched_off_and_is_off_without_momentum() -> None:
    def nesterov(**options: Any) -> bool:
        return bool(make_optimizer(config_of(**options), network()).param_groups[0]["nesterov"])

    assert nesterov()
    assert not nesterov(nesterov=False)
    assert not nesterov(momentum=0.0)


def test_frozen_parameters_are_left_out() -> None:
    module = network()
    module[0].requires_grad_(False)
    held = [each for group in make_optimizer(config_of(), module).param_groups for each in group["params"]]
    assert {id(each) for each in held} == {id(each) for part in module[1:] for each in part.parameters()}


def test_by_default_every_parameter_decays() -> None:
    groups = make_optimizer(config_of(), network()).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(6, 5e-4)]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_biases_and_normalisation_can_be_left_without_decay(name: str) -> None:
    module = network()
    optimizer = make_optimizer(config_of(optimizer=name, weight_decay=0.1, decay_norm_and_bias=False), module)
    decay = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    found = {name: decay[id(each)] for name, each in module.named_parameters()}
    assert found == {"0.weight": 0.1, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 0.1, "3.bias": 0}


def test_a_model_of_biases_only_has_one_group_without_decay() -> None:
    groups = make_optimizer(config_of(decay_norm_and_bias=False), nn.LayerNorm(3)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0)]


def test_the_l1_gradient_is_that_of_the_penalised_loss() -> None:
    module, other = network(), network()
    module[3].bias.data[0] = other[3].bias.data[0] = 0  # where the penalty has no slope
    images = torch.randn(6, 3, 4, 4)
    module(images).square().mean().backward()
    add_l1(make_optimizer(config_of(decay_norm_and_bias=False), module), 0.02)
    penalty = sum(parameter.abs().sum() for parameter in other.parameters())
    (other(images).square().mean() + 0.02 * penalty).backward()
    expected = [parameter.grad for parameter in other.parameters()]
    torch.testing.assert_close([parameter.grad for parameter in module.parameters()], expected, rtol=0, atol=1e-6)


def test_no_l1_changes_no_bit_and_missing_gradients_stay_missing() -> None:
    module = network()
    optimizer = make_optimizer(config_of(), module)
    add_l1(optimizer, 0.5)
    assert all(parameter.grad is None for parameter in module.parameters())
    module[3].weight.grad = torch.full((5, 16), -0.0)
    add_l1(optimizer, 0.0)
    assert module[3].weight.grad.signbit().all()
    add_l1(optimizer, 0.5)
    assert module[3].bias.grad is None
    torch.testing.assert_close(module[3].weight.grad, 0.5 * module[3].weight.sign())


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    for schedule in ("linear", "cosine"):
        factor = lr_factor(config_of(schedule=schedule, warmup=0.2), 100)
        values = [factor(step) for step in range(101)]
        assert values[0] == pytest.approx(1 / 20)
        assert values[19] == pytest.approx(1)
        assert values[60] == pytest.approx(0.5)
        assert values[100] == pytest.approx(0, abs=1e-12)
        assert values[:20] == sorted(values[:20])
        assert values[20:] == sorted(values[20:], reverse=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "linear", "warmup": 0.2}, [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ({"schedule": "constant", "warmup": 0.3}, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "step", "warmup": 0}, [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]),
        ({"schedule": "step", "warmup": 0.1, "lr_step": 0.5, "lr_gamma": 0.3}, [1] * 5 + [0.3] * 5),
        ({"schedule": "multistep", "warmup": 0.2}, [0.5, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01]),  # 7.5: early
        ({"schedule": "multistep", "warmup": 0, "lr_milestones": (0.7,), "lr_gamma": 0.5}, [1] * 7 + [0.5] * 3),
    ],
)
def test_schedules_have_the_values_computed_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    assert factors(10, **options) == pytest.approx(expected)


def test_a_cosine_has_the_values_computed_by_hand() -> None:
    expected = [1, (2 + math.sqrt(3)) / 4, 3 / 4, 1 / 2, 1 / 4, (2 - math.sqrt(3)) / 4]
    assert factors(6, schedule="cosine", warmup=0) == pytest.approx(expected)


@pytest.mark.parametrize(("total_steps", "warmup"), [(10, 0.3), (100, 0.25), (40, 0.9), (20, 0.1)])
def test_one_cycle_is_the_one_cycle_of_torch_with_these_ends(total_steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps, pct_start=warmup, cycle_momentum=False, div_factor=25, final_div_factor=1e4 / 25
    )
    expected = []
    for step in range(total_steps):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        if step < total_steps - 1:
            theirs.step()
    values = factors(total_steps, schedule="one-cycle", warmup=warmup)
    assert values == pytest.approx(expected, rel=1e-9)
    assert values[0] == pytest.approx(1 / 25)
    assert max(values) == values[round(warmup * total_steps) - 1] == pytest.approx(1)
    assert values[-1] == pytest.approx(1e-4)


@given(schedule=st.sampled_from(SCHEDULES), total_steps=st.integers(1, 40), warmup=st.floats(0.01, 0.33))
def test_every_schedule_stays_between_zero_and_the_peak_and_rises_only_in_the_warmup(
    schedule: str, total_steps: int, warmup: float
) -> None:
    values = factors(total_steps, schedule=schedule, warmup=warmup)
    assert all(0 < value <= 1 for value in values)
    after = values[max(0, round(warmup * total_steps) - 1) :]
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_scheduler_goes_on_exactly(schedule: str) -> None:
    config = config_of(schedule=schedule, warmup=0.2)

    def scheduler() -> torch.optim.lr_scheduler.LambdaLR:
        return make_scheduler(config, make_optimizer(config, nn.Linear(2, 2)), 30)

    def rates(each: torch.optim.lr_scheduler.LambdaLR, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(float(each.get_last_lr()[0]))
            each.optimizer.step()
            each.step()
        return found

    whole = rates(scheduler(), 30)
    for stop in (1, 6, 13, 29):
        first, second = scheduler(), scheduler()
        begun = rates(first, stop)
        second.load_state_dict(first.state_dict())
        for group, stopped in zip(second.optimizer.param_groups, first.optimizer.param_groups, strict=True):
            group["lr"] = stopped["lr"]
        assert begun + rates(second, 30 - stop) == whole
    assert len(set(whole)) > 1


@given(schedule=st.sampled_from(SCHEDULES), order=st.permutations(range(20)))
def test_the_factor_of_a_step_does_not_depend_on_the_steps_asked_before(schedule: str, order: list[int]) -> None:
    config = config_of(schedule=schedule, warmup=0.2)
    factor = lr_factor(config, 20)
    found = {step: factor(step) for step in order}
    assert found == {step: lr_factor(config, 20)(step) for step in range(20)}


@pytest.mark.parametrize(
    ("scaling", "batch", "base", "expected"),
    [("none", 1024, 256, 0.1), ("linear", 1024, 256, 0.4), ("sqrt", 1024, 256, 0.2), ("linear", 64, 128, 0.05)],
)
def test_the_peak_is_scaled_by_the_batch_as_the_rule_says(scaling: str, batch: int, base: int, expected: float) -> None:
    assert scaled_lr(config_of(lr_scaling=scaling, lr_base_batch=base), batch) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_base_batch": 0}, "expected --lr-base-batch of at least 1, got 0; give samples, such as 256"),
        ({"weight_decay": math.inf}, "expected a finite --weight-decay of at least 0, got inf; try 5e-4"),
        ({"l1": -1.0}, "expected a finite --l1 of at least 0, got -1.0; 0 is no penalty"),
        ({"l1": math.nan}, "expected a finite --l1 of at least 0, got nan"),
        ({"lr_step": 0.0}, r"expected --lr-step in \(0, 1\), a share of all steps, got 0.0; try 0.3333"),
        ({"lr_step": 30.0}, r"expected --lr-step in \(0, 1\), a share of all steps, got 30.0"),
        ({"lr_milestones": (0.75, 0.5)}, "expected --lr-milestones that rise .*, got 0.75,0.5; try 0.5,0.75"),
        ({"lr_milestones": (0.5, 0.5)}, "expected --lr-milestones that rise .*, got 0.5,0.5"),
        ({"lr_milestones": (30.0, 60.0)}, "expected --lr-milestones that rise .*, got 30.0,60.0"),
        ({"lr_milestones": (0.5, math.nan)}, "expected --lr-milestones that rise .*, got 0.5,nan"),
        ({"lr_milestones": ()}, "expected --lr-milestones that rise .*, got none"),
        ({"betas": (0.9,)}, r"expected two --betas in \[0, 1\), got 0.9; try 0.9,0.999"),
        ({"betas": (0.5, 1.0)}, r"expected two --betas in \[0, 1\), got 0.5,1.0"),
        ({"lr_gamma": 0.0}, r"expected --lr-gamma in \(0, 1\], got 0.0; try 0.1"),
        ({"lr_gamma": 2.0}, r"expected --lr-gamma in \(0, 1\], got 2.0"),
        ({"schedule": "step", "warmup": 0.5}, "expected a first drop after the warm-up, which ends at 0.5 .*--lr-step"),
        ({"schedule": "multistep", "warmup": 0.6}, "first drop .*, got --lr-milestones 0.5; raise .*or lower --warmup"),
        ({"schedule": "one-cycle", "warmup": 0}, "expected --warmup above 0 with --schedule one-cycle, got 0; try 0.3"),
    ],
)
def test_a_bad_value_is_refused_with_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**options)
