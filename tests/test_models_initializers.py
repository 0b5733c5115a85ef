"""Initialisers: the moments that their sources say, once for each weight, and nothing else touched."""

import math

import pytest
import torch
from torch import Tensor, nn

from ddp.initial_config import InitialConfig
from models.initializers import INITIALIZERS, initialize
from models.spec import ModelMistake

LAYERS = {
    "linear": (lambda: nn.Linear(300, 200), 300, 200, 300),
    "conv": (lambda: nn.Conv2d(40, 60, 5, bias=False), 1000, 1500, 1500),
    "transposed": (lambda: nn.ConvTranspose1d(100, 60, 10), 1000, 600, 600),
}
"""A layer, its fan in and fan out, and the one of the two that Kaiming's rule uses."""


def std(name: str, fan_in: int, fan_out: int, kaiming: int) -> float:
    return {
        "xavier-uniform": math.sqrt(2 / (fan_in + fan_out)),
        "xavier-normal": math.sqrt(2 / (fan_in + fan_out)),
        "kaiming-uniform": math.sqrt(2 / kaiming),
        "kaiming-normal": math.sqrt(2 / kaiming),
        "trunc-normal": 0.02 * 0.8796,  # of a normal distribution cut off at two standard deviations
        "normal": 0.01,
    }[name]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", sorted(INITIALIZERS.keys() - {"default", "orthogonal"}))
def test_weights_have_the_moments_of_their_source(name: str, layer: str) -> None:
    build, *fans = LAYERS[layer]
    module = build()
    torch.manual_seed(1)
    initialize(module, name)
    weight = module.weight.detach()
    expected = std(name, *fans)
    assert float(weight.std()) == pytest.approx(expected, rel=0.02)
    assert abs(float(weight.mean())) < 0.02 * expected
    largest = float(weight.abs().max()) / expected
    bounds = {"uniform": (1.72, math.sqrt(3) + 1e-4), "trunc": (2.2, 2 / 0.8796 + 1e-3), "normal": (3.5, 7.0)}
    low, high = next(value for part, value in bounds.items() if part in name)
    assert low < largest < high
    if module.bias is not None:
        assert not module.bias.any()


@pytest.mark.parametrize("layer", LAYERS)
def test_orthogonal_rows_or_columns_are_orthonormal(layer: str) -> None:
    module = LAYERS[layer][0]()
    initialize(module, "orthogonal")
    weight = module.weight.detach()
    weight = weight.transpose(0, 1) if layer == "transposed" else weight
    rows = weight.flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4)
    )


def test_normalisation_and_embeddings_stay_as_they_were() -> None:
    module = net()
    with torch.no_grad():
        module[1].weight.fill_(0)  # as networks do whose residual branches begin at zero
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    initialize(module, "normal")
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.weight", "0.bias", "5.weight", "5.bias"}


@pytest.mark.parametrize("name", sorted(INITIALIZERS.keys() - {"default"}))
def test_the_same_seed_gives_the_same_weights_in_any_memory_format(name: str) -> None:
    first, second = net(), net().to(memory_format=torch.channels_last)
    for module in (first, second):
        torch.manual_seed(7)
        initialize(module, name)
    assert second[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    torch.manual_seed(8)
    initialize(second, name)
    assert not torch.equal(first[0].weight, second[0].weight)


def test_a_shared_weight_is_drawn_once() -> None:
    def drawn(shared: bool) -> tuple[Tensor, Tensor]:
        module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
        if shared:
            module[1].weight = module[0].weight
        torch.manual_seed(0)
        initialize(module, "xavier-normal")
        return module[0].weight, module[2].weight if shared else module[1].weight

    assert all(map(torch.equal, drawn(True), drawn(False)))


def test_attention_is_three_matrices() -> None:
    module = nn.MultiheadAttention(64, 4)
    initialize(module, "orthogonal")
    for part in module.in_proj_weight.detach().chunk(3):
        assert torch.allclose(part @ part.T, torch.eye(64), atol=1e-5)
    assert not torch.equal(*module.in_proj_weight.detach().chunk(3)[:2])
    assert not module.in_proj_bias.any()


def test_default_changes_nothing_and_draws_nothing() -> None:
    module = net()
    state, before = torch.get_rng_state(), [tensor.clone() for tensor in module.state_dict().values()]
    initialize(module, "default")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, module.state_dict().values(), before))


def test_every_name_of_the_options_is_an_initialiser() -> None:
    for name in INITIALIZERS:
        assert InitialConfig(init=name).init == name  # type: ignore[arg-type]
    choices = InitialConfig.__annotations__["init"].__args__
    assert set(choices) == INITIALIZERS.keys()
    with pytest.raises(ModelMistake, match=r"expected an initialiser .*, got 'he'"):
        initialize(net(), "he")
