"""torchvision's weights: from the cache or an address, to the last bit; without a network, one sentence."""

import hashlib
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from models import zoo
from models.spec import ModelMistake
from models.torchvision_weights import check_downloadable, fetch, load_downloaded

NAME = "squeezenet1_1"
"""The smallest of torchvision's models."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def reference(name: str, **options: Any) -> nn.Module:
    """A model of torchvision's with weights that no initialiser draws."""
    with torch.device("meta"):
        module = get_model(name, weights=None, **options)
    module = module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(7)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
        else:
            tensor.zero_()
    return module


def place(cache: Path, name: str, state: dict[str, Tensor]) -> None:
    """Put a file where torch.hub would have put its download."""
    torch.save(state, cache / get_model_weights(name).DEFAULT.url.rpartition("/")[2])


def silent(text: str) -> None:
    """Nothing must be said."""
    raise AssertionError(text)


def test_a_file_in_the_cache_is_used_without_a_word_and_loaded_to_the_last_bit(cache: Path) -> None:
    source = reference(NAME).state_dict()
    place(cache, NAME, source)
    assert fetch(NAME, "IMAGENET1K_V1", silent).parent == cache
    module = zoo.find(NAME).build((3, 64, 64), 1000)
    assert load_downloaded(module, NAME, "DEFAULT", False) == []
    assert all(torch.equal(tensor, source[name]) for name, tensor in module.state_dict().items())


def test_a_head_of_other_classes_starts_anew_if_asked_for(cache: Path) -> None:
    source = reference(NAME).state_dict()
    place(cache, NAME, source)
    module = zoo.find(NAME).build((3, 64, 64), 5)
    with pytest.raises(ModelMistake, match=r"tensors in SqueezeNet1_1_Weights.IMAGENET1K_V1, .*--new-head"):
        load_downloaded(module, NAME, "DEFAULT", False)
    assert load_downloaded(module, NAME, "DEFAULT", True) == ["classifier.1.weight", "classifier.1.bias"]
    for name, tensor in module.state_dict().items():
        assert name.startswith("classifier.1.") or torch.equal(tensor, source[name]), name


def test_names_of_old_files_are_known(cache: Path) -> None:
    source = reference("densenet121").state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): each
        for name, each in source.items()
        if not name.endswith("num_batches_tracked")
    }
    place(cache, "densenet121", old)
    with torch.device("meta"):
        module = zoo.find("densenet121").build((3, 224, 224), 1000)
    module = module.to_empty(device="cpu")
    assert load_downloaded(module, "densenet121", "DEFAULT", False) == []
    assert all(torch.equal(tensor, source[name]) for name, tensor in module.state_dict().items())


def test_inception_learns_of_the_inputs_that_its_weights_expect(cache: Path) -> None:
    place(cache, "inception_v3", reference("inception_v3", aux_logits=True, init_weights=False).state_dict())
    module = get_model("inception_v3", weights=None, num_classes=7, aux_logits=False, init_weights=False)
    assert not module.transform_input
    assert load_downloaded(module, "inception_v3", "DEFAULT", True) == ["fc.weight", "fc.bias"]
    assert module.transform_input


def test_a_broken_file_in_the_cache_is_named(cache: Path) -> None:
    (cache / get_model_weights(NAME).DEFAULT.url.rpartition("/")[2]).write_bytes(b"half a file")
    with pytest.raises(ModelMistake, match=r"expected weights in .*squeezenet1_1-.*, got what torch cannot load"):
        load_downloaded(zoo.find(NAME).build((3, 64, 64), 1000), NAME, "DEFAULT", False)


def test_a_download_says_what_and_from_where_before_it_starts_and_checks_the_hash(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"the bytes of a file"
    good, bad = (tmp_path / f"net-{digits}.pth" for digits in (hashlib.sha256(content).hexdigest()[:8], "0" * 8))
    member = get_model_weights(NAME).DEFAULT
    said: list[str] = []

    def say(text: str) -> None:
        assert not list(cache.iterdir())
        said.append(text)

    for origin in (bad, good):
        origin.write_bytes(content)
        monkeypatch.setattr(member.value, "url", origin.as_uri())
        if origin is bad:
            with pytest.raises(ModelMistake, match="invalid hash value"):
                fetch(NAME, "DEFAULT", say)
            assert not list(cache.iterdir())
        else:
            assert fetch(NAME, "DEFAULT", say).read_bytes() == content
            assert said[-1] == (
                f"downloading SqueezeNet1_1_Weights.IMAGENET1K_V1, 5 MB, from {good.as_uri()} to {cache / good.name}"
            )
    assert len(said) == 2


def test_without_a_network_there_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setattr(urllib.request, "_opener", None)
    said: list[str] = []
    with pytest.raises(
        ModelMistake, match=r"expected to download https://.*squeezenet1_1-\S+pth, got .*put the file at"
    ) as told:
        fetch(NAME, "DEFAULT", said.append)
    assert "\n" not in str(told.value)
    assert len(said) == 1
    assert not list(cache.iterdir())


@pytest.mark.parametrize("model", ["resnet18-cifar", "lenet5", "mine.py:net", "timm:resnet18"])
def test_models_of_other_sources_are_refused(model: str) -> None:
    with pytest.raises(ModelMistake, match="expected one of torchvision's models for --download-weights, got"):
        check_downloadable(model)


def test_weights_that_do_not_exist_are_refused_with_those_that_do() -> None:
    with pytest.raises(ModelMistake, match=r"of resnet50 by name \(IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT\).*got 'V3'"):
        fetch("resnet50", "V3", silent)
    with pytest.raises(ModelMistake, match=r"of mnasnet0_5 by name .*IMAGENET1K_V1, DEFAULT"):
        fetch("mnasnet0_5", "", silent)


def test_a_refusal_needs_no_torch() -> None:
    code = "import sys; from models.torchvision_weights import check_downloadable as c; c('resnet18')\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True)
