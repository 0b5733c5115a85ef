"""Names to models: functions marked @model in this folder, torchvision's and timm's classifiers, and own files.

Names are read from source text, so that listing them and refusing a misspelt one needs no import of torch.
"""

import ast
import re
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.spec import ModelMistake, ModelSpec, Shape
from models.timm_source import PREFIX, check_timm_name, timm_spec

if TYPE_CHECKING:
    from torch import nn

FOLDER = Path(__file__).parent
IMAGENET_SHAPE, IMAGENET_CLASSES = (3, 224, 224), 1000
TORCHVISION_MODEL = re.compile(r"^@register_model\(\)\s(?:@.*\s)*?def (\w+)\(", re.MULTILINE)


def _is_model(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "model"
        for mark in node.decorator_list
    )


@cache
def own_names() -> dict[str, Path]:
    """Name -> file of the models in this folder."""
    return {
        node.name.replace("_", "-"): path
        for path in sorted(FOLDER.glob("*.py"))
        for node in ast.parse(path.read_text()).body
        if _is_model(node) and isinstance(node, ast.FunctionDef)
    }


@cache
def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's classifiers, as torchvision.models.get_model takes them."""
    found = find_spec("torchvision")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "models"
    names = (name for path in folder.glob("*.py") for name in TORCHVISION_MODEL.findall(path.read_text()))
    return tuple(sorted(names))


def _top_level_names(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def _own_file(name: str) -> tuple[Path, str]:
    file, _, factory = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ModelMistake(f"expected a Python file before the colon in {name}, got no file {file}; check the path")
    try:
        names = _top_level_names(ast.parse(path.read_text()))
    except SyntaxError as error:
        raise ModelMistake(
            f"expected Python in {file}, got a syntax error in line {error.lineno}; correct it"
        ) from None
    if factory not in names:
        have = ", ".join(sorted(names)) or "nothing"
        raise ModelMistake(f"expected a factory in {file} after the colon, got {factory!r}; the file has {have}")
    return path, factory


def check_name(name: str) -> None:
    """Raise ModelMistake with the nearest names unless a model of that name exists. Imports no torch."""
    if ".py:" in name:
        _own_file(name)
        return
    if name.startswith(PREFIX):
        check_timm_name(name)
        return
    known = [*own_names(), *torchvision_names()]
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `ringmark list models`"
        raise ModelMistake(
            f"expected a model (one of {len(known)} names, timm:NAME, or path/to/file.py:factory), got {name!r}; {hint}"
        )


def _from_file(name: str) -> ModelSpec:
    path, factory = _own_file(name)
    found = spec_from_file_location(f"ringmark_user_{path.stem}", path.resolve())
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    build = getattr(module, factory)
    if isinstance(build, ModelSpec):
        return build
    return ModelSpec(name=name, build=build, shape=(3, 32, 32), classes=10, parameters=None, source=str(path.resolve()))


def _from_torchvision(name: str) -> ModelSpec:
    # Their extra training outputs would make them another task; without them they are plain classifiers.
    options: dict[str, Any] = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    if options:
        options["init_weights"] = True

    def build(shape: Shape, classes: int) -> "nn.Module":
        from torchvision.models import get_model

        if shape[0] != 3:
            raise ModelMistake(
                f"expected images of 3 channels for torchvision's {name}, got {shape[0]}; choose another model"
            )
        return get_model(name, weights=None, num_classes=classes, **options)

    shape = (3, 299, 299) if name == "inception_v3" else IMAGENET_SHAPE
    return ModelSpec(
        name=name, build=build, shape=shape, classes=IMAGENET_CLASSES, parameters=None, source="torchvision"
    )


def find(name: str) -> ModelSpec:
    """The model of that name. Raises ModelMistake if there is none."""
    check_name(name)
    if ".py:" in name:
        return _from_file(name)
    if name.startswith(PREFIX):
        return timm_spec(name)
    if name in own_names():
        spec: ModelSpec = getattr(import_module(f"models.{own_names()[name].stem}"), name.replace("-", "_"))
        return spec
    return _from_torchvision(name)


def build(spec: ModelSpec, shape: Shape, classes: int, output_shape: tuple[int, ...] | None) -> "nn.Module":
    """Build a model and try it on two blank samples, each of which must give a tensor of `output_shape`.

    With None it is not tried: what it takes or gives is not one tensor. Raises ModelMistake if it does not fit.
    """
    import torch

    module = spec.build(shape, classes)
    if output_shape is None:
        return module.train()
    try:
        with torch.no_grad():
            output = module.eval()(torch.zeros(2, *shape))
    except (RuntimeError, AssertionError) as error:  # vision transformers assert the size of an image
        raise ModelMistake(
            f"expected a model for samples of {'x'.join(map(str, shape))}, got {spec.name}, which fails on them "
            f"({str(error).splitlines()[0]}); choose another model or --image-size"
        ) from None
    if not isinstance(output, torch.Tensor) or output.shape != (2, *output_shape):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelMistake(
            f"expected an output of shape {(2, *output_shape)} from {spec.name} for {spec.task} of 2 samples, got "
            f"{got}; choose another model, or mend it"
        )
    return module.train()
