"""timm's models by name: refused without timm or with the nearest names, built for any classes and channels."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import timm_source
from models.spec import ModelMistake
from models.timm_source import check_timm_name, timm_names, timm_spec

ROOT = Path(__file__).resolve().parent.parent


def test_a_model_is_built_without_trained_weights_for_any_classes_and_channels() -> None:
    spec = timm_spec("timm:resnet18")
    assert (spec.shape, spec.classes, spec.task) == ((3, 224, 224), 1000, "classification")
    module = spec.build((1, 32, 32), 7)
    # ResNet-18 of He et al.: 11,689,512 with 3 channels and 1000 classes; the first layer has 7 x 7 x 64 per channel
    assert sum(parameter.numel() for parameter in module.parameters()) == 11_689_512 - 2 * 3136 - 993 * 513
    assert module.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert timm_spec("timm:test_resnet").shape == (3, 160, 160)


def test_names_are_those_that_timm_lists() -> None:
    import timm

    assert list(timm_names()) == sorted(timm.list_models())


def test_a_misspelt_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelMistake, match=r"got 'timm:resnt18'; did you mean timm:resnet18 or timm:"):
        check_timm_name("timm:resnt18")
    with pytest.raises(ModelMistake, match=r"got 'timm:resnt18'"):
        timm_spec("timm:resnt18")
    with pytest.raises(ModelMistake, match=r"see timm.list_models\(\)"):
        check_timm_name("timm:!")


def test_a_name_is_checked_without_an_import() -> None:
    code = "import sys; from models.timm_source import check_timm_name as c; c('timm:resnet18')\n"
    code += "assert not {'timm', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_without_timm_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_source, "find_spec", lambda name: importlib.util.find_spec(f"{name}_that_is_not_there"))
    timm_names.cache_clear()
    try:
        with pytest.raises(
            ModelMistake, match=r"expected timm to be installed for timm:resnet18, .*`pip install timm`"
        ):
            check_timm_name("timm:resnet18")
    finally:
        timm_names.cache_clear()
