"""Frozen parts: what is taken out of training, and that not a bit of it changes while the rest trains."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.freeze import freeze, hold_still
from ddp.initial_config import InitialConfig
from ddp.loader import Batch
from ddp.loop import train_step
from ddp.mistake import Mistake
from ddp.trainer import make_trainer
from models import zoo
from models.pretrained import head_of
from tests.ranks import run_ranks

CONFIG = TrainConfig(global_batch_size=12)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.drop1 = nn.Dropout(0.5)
        self.conv10 = nn.Conv2d(4, 4, 3)
        self.bn10 = nn.BatchNorm2d(4)
        self.part = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.fc = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.bn1(self.conv1(x))).relu()
        return self.fc(self.part(self.bn10(self.conv10(x)).relu()).flatten(1))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize(
    ("prefixes", "frozen"),
    [
        (("conv1",), {"conv1.weight", "conv1.bias"}),
        (("conv1.weight", "part.1"), {"conv1.weight", "part.1.weight", "part.1.bias"}),
        (("fc", "part.0.bias"), {"fc.weight", "fc.bias", "part.0.bias"}),
    ],
)
def test_a_name_freezes_what_lies_below_it_and_nothing_else(prefixes: tuple[str, ...], frozen: set[str]) -> None:
    module = net()
    done = freeze(module, prefixes)
    assert {name for name, parameter in module.named_parameters() if not parameter.requires_grad} == frozen
    assert set(done.parameters) == frozen
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    assert done.frozen_size == sum(sizes[name] for name in frozen)
    assert done.trained_size == sum(sizes.values()) - done.frozen_size


def test_a_shared_weight_is_frozen_under_any_of_its_names() -> None:
    module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    module["b"].weight = module["a"].weight
    assert freeze(module, ("b",)).frozen_size == 12
    assert [name for name, parameter in module.named_parameters() if parameter.requires_grad] == ["a.bias"]


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        (
            ("conv2",),
            r"expected a part of the model with weights for --freeze \(conv1, bn1, conv10, bn10, part, fc\), ",
        ),
        (("conv",), "got 'conv'; did you mean conv1 or conv10"),
        (("conv1", "drop1"), "got 'drop1'"),
        (("conv1.weigh",), "got 'conv1.weigh'"),
        (("conv1", "bn1", "conv10", "bn10", "part", "fc"), "expected a part of the model that is still trained"),
    ],
)
def test_names_that_freeze_nothing_or_everything_are_refused(prefixes: tuple[str, ...], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        freeze(net(), prefixes)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "vit_b_16", "efficientnet_b0", "swin_t", "lenet5"])
def test_the_backbone_is_all_but_the_last_layer(name: str) -> None:
    spec = zoo.find(name)
    with torch.device("meta"):
        module = spec.build(spec.shape, 10).train()
    freeze(module, ("backbone",))
    head = head_of(module)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in module.named_parameters() if name.startswith(f"{head}.")}
    hold_still(module, ("backbone",))
    normal = {name for name, layer in module.named_modules() if layer.training}
    assert head in normal
    weights = {name.rpartition(".")[0] for name in (*dict(module.named_parameters()), *dict(module.named_buffers()))}
    parents = {each for each in weights if f"{head}.".startswith(f"{each}." if each else "")}
    assert normal & weights == parents


def test_dropout_in_front_of_the_last_layer_stays_and_dropout_inside_the_backbone_goes() -> None:
    module = zoo.find("efficientnet_b0").build((3, 64, 64), 10).train()
    hold_still(module, ("backbone",))
    assert module.get_submodule("classifier.0").training
    assert not any(layer.training for layer in module.get_submodule("features").modules())


def test_words_mean_parts_unless_the_model_has_a_part_of_that_name() -> None:
    module = nn.ModuleDict({"backbone": nn.Linear(3, 3), "neck": nn.Linear(3, 3), "fc": nn.Linear(3, 3)})
    assert set(freeze(module, ("backbone",)).parameters) == {"backbone.weight", "backbone.bias"}
    assert freeze(net(), ("none",)).frozen_size == 0
    assert set(freeze(net(), ("backbone", "conv1")).parameters) == {
        name for name, _ in net().named_parameters() if not name.startswith("fc.")
    }


def test_a_model_of_one_layer_has_no_backbone() -> None:
    with pytest.raises(Mistake, match="expected a model of more than one layer for --freeze backbone"):
        freeze(nn.Linear(3, 3), ("backbone",))


@pytest.mark.parametrize(
    ("prefixes", "still"),
    [
        (("part",), {"part", "part.0", "part.1", "part.2"}),
        (("bn1", "conv1"), {"bn1", "conv1"}),
        (("bn1.weight", "bn1.bias"), {"bn1"}),
        (("bn1.weight",), set()),
        (("conv1.weight", "conv1.bias"), set()),
        ((), set()),
        (("none",), set()),
        (("backbone",), {"conv1", "bn1", "conv10", "bn10", "part", "part.0", "part.1", "part.2"}),
    ],
)
def test_frozen_layers_go_into_evaluation_mode(prefixes: tuple[str, ...], still: set[str]) -> None:
    module = net().train()
    hold_still(module, prefixes)
    assert {name for name, layer in module.named_modules() if not layer.training} == still


def trained(ctx: DistContext, prefixes: tuple[str, ...], *, sync_bn: bool) -> dict[str, Tensor]:
    """The model after four steps on the same 12 samples, of which each rank has every n-th."""
    module = net().double()
    module.drop1.p = 0.0  # dropout draws differ between ranks; in `part` it must be off
    if prefixes != ("part", "conv1", "bn1"):
        module.part[2].p = 0.0
    freeze(module, prefixes)
    trainer = make_trainer(module, replace(CONFIG, sync_bn=sync_bn), ctx, 4)
    images = torch.randn(12, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    labels = torch.arange(12) % 3
    mine = slice(ctx.rank, None, ctx.world_size)
    for _ in range(2):
        trainer.train_mode()
        hold_still(trainer.module, prefixes)
        for _ in range(2):
            train_step(trainer, Batch(images[mine], labels[mine], 12, torch.arange(12)[mine]))
        trainer.wrapped.eval()
    return {name: tensor.clone() for name, tensor in trainer.module.state_dict().items()}


@pytest.mark.parametrize(
    ("prefixes", "ranks"), [(("part", "conv1", "bn1"), 2), (("conv1", "bn1.weight", "bn1.bias"), 3)]
)
def test_frozen_parts_keep_every_bit_and_ranks_learn_what_one_learns(prefixes: tuple[str, ...], ranks: int) -> None:
    (alone,) = run_ranks(lambda ctx: trained(ctx, prefixes, sync_bn=True), 1)
    together = run_ranks(lambda ctx: trained(ctx, prefixes, sync_bn=True), ranks)
    check_frozen(together, prefixes)
    for name, tensor in alone.items():
        assert torch.allclose(together[0][name].double(), tensor.double(), rtol=1e-9, atol=1e-12), name


def test_plain_batchnorm_stands_still_too() -> None:
    check_frozen(
        run_ranks(lambda ctx: trained(ctx, ("part", "conv1", "bn1"), sync_bn=False), 2), ("part", "conv1", "bn1")
    )


def check_frozen(states: Sequence[dict[str, Tensor]], prefixes: tuple[str, ...]) -> None:
    before = net().double().state_dict()
    parts = {prefix.partition(".")[0] for prefix in prefixes}
    if prefixes == ("backbone",):
        parts = {name.partition(".")[0] for name in before} - {"fc"}
    for state in states:
        for name, tensor in before.items():
            same = torch.equal(state[name], tensor)
            assert same == (name.partition(".")[0] in parts), name


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(Mistake, match="expected --weights or --download-weights with --new-head, got none"):
        InitialConfig(new_head=True)
    with pytest.raises(Mistake, match="expected --weights or --download-weights, got both"):
        InitialConfig(weights="model.pt", download_weights="DEFAULT")  # type: ignore[arg-type]
    with pytest.raises(Mistake, match="got --init orthogonal with weights"):
        InitialConfig(init="orthogonal", download_weights="DEFAULT")
    with pytest.raises(Mistake, match="expected names of parts or none in --freeze, got fc,none"):
        InitialConfig(freeze=("fc", "none"))
    with pytest.raises(Mistake, match="got --init orthogonal with weights"):
        InitialConfig(init="orthogonal", weights="model.pt")  # type: ignore[arg-type]
    with pytest.raises(Mistake, match="expected names of parts in --freeze"):
        InitialConfig(freeze=("conv1", ""))
    assert InitialConfig(init="orthogonal", weights="model.pt", new_head=True).new_head  # type: ignore[arg-type]
