"""Every model can be built, has the parameters that its source says, and is found by name without importing torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from models import zoo
from models.spec import ModelSpec
from tests import meta_models

OWN = [zoo.find(name) for name in sorted(zoo.own_names())]
CLASSIFIERS = [spec for spec in OWN if spec.task == "classification"]
SMALLEST = [
    min((spec for spec in CLASSIFIERS if zoo.own_names()[spec.name] == path), key=lambda spec: spec.parameters or 0)
    for path in sorted({zoo.own_names()[spec.name] for spec in CLASSIFIERS})
]


def names(spec: ModelSpec) -> str:
    return spec.name


@pytest.mark.parametrize("spec", OWN, ids=names)
def test_a_model_has_the_parameters_that_it_says(spec: ModelSpec) -> None:
    assert meta_models.count(meta_models.build(spec, spec.shape, spec.classes)) == spec.parameters


@pytest.mark.parametrize("spec", CLASSIFIERS, ids=names)
def test_a_classifier_takes_other_data_and_uses_all_its_parameters(spec: ModelSpec) -> None:
    shape = (1, *spec.shape[1:]) if len(spec.shape) == 3 else spec.shape
    module = meta_models.build(spec, shape, 7)
    logits = meta_models.run(module, shape)
    assert logits.shape == (2, 7)
    assert {id(parameter) for parameter in module.parameters()} == meta_models.reached(logits)


@pytest.mark.parametrize("spec", SMALLEST, ids=names)
def test_the_smallest_classifier_of_each_file_has_finite_gradients(spec: ModelSpec) -> None:
    module = spec.build(spec.shape, spec.classes)
    module(torch.randn(2, *spec.shape)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


def test_names_read_from_torchvisions_source_are_those_it_has() -> None:
    assert list(zoo.torchvision_names()) == sorted(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet"])
def test_a_torchvision_classifier_is_built_for_the_classes_of_the_data(name: str) -> None:
    spec = zoo.find(name)
    assert spec.shape == (3, 224, 224)
    assert zoo.build(spec, (3, 64, 64), 7, (7,))(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_names_are_found_without_importing_torch() -> None:
    script = (
        "import sys; from models import zoo; zoo.check_name('resnet18'); zoo.check_name('resnet18-cifar'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 'resnet18-cfar'; did you mean resnet18-cifar"):
        zoo.find("resnet18-cfar")


USER_FILE = """
from torch import nn

def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

def broken(shape, classes):
    return nn.Linear(shape[0], classes)

def too_many(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes + 1))
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    return path


def test_a_factory_of_the_users_own_file_is_a_model(user_file: Path) -> None:
    spec = zoo.find(f"{user_file}:net")
    assert zoo.build(spec, (1, 8, 8), 10, (10,))(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py:net", "expected a Python file before the colon in missing.py:net, got no file"),
        ("{file}:nett", "expected a factory in .*mine.py after the colon, got 'nett'; the file has broken, net, nn"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(user_file: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.check_name(name.format(file=user_file))


def test_a_file_with_a_syntax_error_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("x = 1\ndef net(:\n")
    with pytest.raises(ValueError, match=r"got a syntax error in line 2"):
        zoo.check_name(f"{tmp_path / 'bad.py'}:net")


@pytest.mark.parametrize(
    ("factory", "message"),
    [("broken", "which fails on them"), ("too_many", r"expected an output of shape \(2, 10\) from .*, got \(2, 11\)")],
)
def test_a_model_that_does_not_fit_the_data_is_refused(user_file: Path, factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.build(zoo.find(f"{user_file}:{factory}"), (3, 8, 8), 10, (10,))


def test_lenet_says_which_sizes_it_takes() -> None:
    with pytest.raises(ValueError, match="28x28 or 32x32 for lenet5, got 8x8; add --image-size 32"):
        zoo.build(zoo.find("lenet5"), (1, 8, 8), 10, (10,))
