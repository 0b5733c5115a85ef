"""Weights from files: what fits is loaded to the last bit, and what does not is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import zoo
from models.pretrained import head_of, load_weights
from models.spec import ModelMistake

State = dict[str, Any]


def net(classes: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, classes))


def saved(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("new_head", [False, True])
@pytest.mark.parametrize(
    "rename",
    [str, "module.{}".format, "_orig_mod.{}".format, "module._orig_mod.{}".format, "_orig_mod.module.{}".format],
)
def test_weights_come_back_under_whatever_wrapper_they_were_saved(
    tmp_path: Path, rename: Callable[[str], str], new_head: bool
) -> None:
    source = net(seed=1)
    source(torch.randn(5, 1, 4, 4))  # running statistics are loaded too
    path = saved(tmp_path, {rename(name): tensor for name, tensor in source.state_dict().items()})
    target = net(seed=2)
    assert load_weights(target, path, new_head) == []
    assert all(map(torch.equal, target.state_dict().values(), source.state_dict().values()))


def test_a_part_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    source, target = nn.ModuleDict({"module": net(seed=1)}), nn.ModuleDict({"module": net(seed=2)})
    load_weights(target, saved(tmp_path, source.state_dict()), False)
    assert all(map(torch.equal, target.state_dict().values(), source.state_dict().values()))


def test_a_head_of_other_classes_starts_anew_and_all_else_is_loaded(tmp_path: Path) -> None:
    source, target = net(classes=7, seed=1), net(classes=4, seed=2)
    before = state_of(target)
    assert load_weights(target, saved(tmp_path, source.state_dict()), True) == ["4.weight", "4.bias"]
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith("4.") else source.state_dict()[name])


def test_a_head_without_the_files_bias_starts_anew_as_a_whole(tmp_path: Path) -> None:
    source = net(seed=1).state_dict()
    del source["4.bias"]
    target = net(seed=2)
    before = state_of(target)
    assert load_weights(target, saved(tmp_path, source), True) == ["4.weight", "4.bias"]
    assert torch.equal(target[4].weight, before["4.weight"])


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


CHANGES: dict[str, tuple[Callable[[State], State], bool, str]] = {
    "other classes": (
        lambda state: net(classes=7).state_dict(),
        False,
        r"got 4.weight \(4x8 in the model, 7x8 in the file\), 4.bias \(4 in the model, 7 in the file\); .*--new-head",
    ),
    "missing": (lambda state: without(state, "1.bias"), True, r"got 1.bias \(2 in the model, missing in the file\)"),
    "extra": (lambda state: {**state, "aux.weight": torch.zeros(3)}, True, r"got aux.weight \(not in the model, 3 in"),
    "outside the head": (
        lambda state: {**state, "0.weight": torch.zeros(2, 3, 3, 3)},
        True,
        r"outside the last layer, got 0.weight \(2x1x3x3 in the model, 2x3x3x3 in the file\); choose the model",
    ),
    "another model": (
        lambda state: {"fc.weight": torch.zeros(1)},
        False,
        r"0.weight .*, 0.bias .*, 1.weight .* and 7 more",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused_and_the_model_stays_as_it_was(tmp_path: Path, change: str) -> None:
    make, new_head, message = CHANGES[change]
    target = net()
    before = state_of(target)
    with pytest.raises(ModelMistake, match=message):
        load_weights(target, saved(tmp_path, make(net(seed=1).state_dict())), new_head)
    assert all(map(torch.equal, target.state_dict().values(), before.values()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (net(), "expected weights in .*model.pt, got what torch cannot load"),
        ([torch.zeros(1)], "expected tensors by name in .*model.pt, got list"),
        ({}, "expected tensors by name"),
        (
            {"epoch": 3, "state_dict": net().state_dict()},
            "expected nothing but tensors by name in .*, got epoch, state",
        ),
    ],
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ModelMistake, match=message) as told:
        load_weights(net(), saved(tmp_path, content), False)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 half a zip file"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ModelMistake, match="got what torch cannot load"):
        load_weights(net(), tmp_path / "model.pt", False)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMistake, match=r"expected a file of weights, got no file .*none.pt; check the path"):
        load_weights(net(), tmp_path / "none.pt", False)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"), ("vgg11", "classifier.6"), ("densenet121", "classifier"), ("vit_b_16", "heads.head"),
        ("squeezenet1_0", "classifier.1"), ("resnet18-cifar", "fc"), ("resnet9-w16", "head"), ("lenet5", "11"),
    ],
)  # fmt: skip
def test_the_last_layer_is_the_head(name: str, head: str) -> None:
    spec = zoo.find(name)
    with torch.device("meta"):
        module = spec.build(spec.shape, 17)
    assert head_of(module) == head
    assert all(parameter.shape[0] == 17 for parameter in module.get_submodule(head).parameters())
