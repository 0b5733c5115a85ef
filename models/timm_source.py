"""timm's classifiers by the name `timm:NAME`, where timm is installed. Names are read from its source text."""

import re
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from models.spec import ModelMistake, ModelSpec, Shape

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm:"
"""Beginning of the names of timm's models."""
MARKED = re.compile(r"^@register_model(?:\(\))?\s+(?:@.*\s+)*?def (\w+)\(", re.MULTILINE)
"""A function that timm registers as a model."""


@cache
def timm_names() -> tuple[str, ...]:
    """timm's models without the prefix, sorted; none if timm is not installed. Imports neither timm nor torch."""
    found = find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return ()
    folder = Path(found.submodule_search_locations[0]) / "models"
    return tuple(sorted({name for path in folder.rglob("*.py") for name in MARKED.findall(path.read_text())}))


def check_timm_name(name: str) -> None:
    """Raise ModelMistake with the nearest names unless timm is installed and has that model, `timm:NAME`."""
    known = timm_names()
    if not known:
        raise ModelMistake(
            f"expected timm to be installed for {name}, got no such package; run `pip install timm`, or choose one of "
            "`ringmark list models`"
        )
    plain = name.removeprefix(PREFIX)
    if plain not in known:
        near = [f"{PREFIX}{each}" for each in get_close_matches(plain, known, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise ModelMistake(f"expected a model of timm (one of {len(known)} names), got {name!r}; {hint}")


def timm_spec(name: str) -> ModelSpec:
    """The model `timm:NAME`, without trained weights. Raises ModelMistake if there is none. Imports timm."""
    check_timm_name(name)
    import timm

    plain = name.removeprefix(PREFIX)

    def build(shape: Shape, classes: int) -> "nn.Module":
        module: nn.Module = timm.create_model(plain, pretrained=False, num_classes=classes, in_chans=shape[0])
        return module

    trained = timm.get_pretrained_cfg(plain)
    return ModelSpec(
        name=name,
        build=build,
        shape=tuple(trained.input_size) if trained is not None else (3, 224, 224),
        classes=int(trained.num_classes or 1000) if trained is not None else 1000,
        parameters=None,
        source=f"timm {timm.__version__}",
    )
