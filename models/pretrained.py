"""Weights from a file, into a model of the same architecture; its last layer may be one of other classes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.spec import ModelMistake

SHOWN = 3
"""Names of tensors that a message shows."""
Misfit = tuple[str, str]
"""Name of a tensor, and what is wrong with it."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors by name. Raises ModelMistake if it is not a plain state dict."""
    if not path.is_file():
        raise ModelMistake(f"expected a file of weights, got no file {path}; check the path")
    remedy = "give a state dict saved by torch.save, such as the model.pt of a run"
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes the reader of zip files and pickles stumble over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelMistake(f"expected weights in {path}, got what torch cannot load ({reason}); {remedy}") from None
    if not isinstance(content, dict) or not content:
        raise ModelMistake(f"expected tensors by name in {path}, got {type(content).__name__}; {remedy}")
    foreign = [
        str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if foreign:
        raise ModelMistake(f"expected nothing but tensors by name in {path}, got {_some(foreign)}; {remedy}")
    return content


def _some(names: list[str]) -> str:
    left = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {left} more" if left > 0 else "")


def _unwrapped(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DDP (module.) and torch.compile (_orig_mod.) put into them.

    `module.` goes only where every name has it and the model itself has no part of that name.
    """
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in given.items()}
    own = any(name.startswith("module.") for name in wanted)
    while not own and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): tensor for name, tensor in plain.items()}
    return plain


def head_of(module: nn.Module) -> str:
    """Name of the last layer: the module registered last of those that have parameters of their own, such as fc.

    Raises ModelMistake for a model without parameters.
    """
    layers = [name for name, layer in module.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    if not layers:
        raise ModelMistake("expected a model with parameters to load weights into, got none; choose another model")
    return layers[-1]


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _misfits(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[Misfit]:
    """What keeps the file's tensors from being the model's, in the model's order."""
    found = []
    for name, tensor in wanted.items():
        if name not in given:
            found.append((name, f"{name} ({_size(tensor)} in the model, missing in the file)"))
        elif given[name].shape != tensor.shape:
            found.append((name, f"{name} ({_size(tensor)} in the model, {_size(given[name])} in the file)"))
    extra = given.keys() - wanted.keys()
    return found + [(name, f"{name} (not in the model, {_size(given[name])} in the file)") for name in sorted(extra)]


def load_weights(module: nn.Module, path: Path, new_head: bool) -> list[str]:
    """Load a file's weights and buffers into a model -> names of the tensors that start anew instead.

    With `new_head` the last layer (see `head_of`) stays as it was initialised if any of its tensors is missing in the
    file or of another shape; all else must fit. Raises ModelMistake, with the model unchanged, if the file is missing
    or foreign, or if names or shapes differ.
    """
    return load_tensors(module, read_tensors(path), str(path), new_head)


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], origin: str, new_head: bool) -> list[str]:
    """The same from tensors by name; `origin` says in messages where they are from."""
    wanted: dict[str, Tensor] = module.state_dict()
    given = _unwrapped(tensors, wanted)
    misfits = _misfits(given, wanted)
    anew: list[str] = []
    if new_head:
        inside = f"{head_of(module)}.".removeprefix(".")
        if any(name.startswith(inside) for name, _ in misfits):
            anew = [name for name in wanted if name.startswith(inside)]
            misfits = [(name, text) for name, text in misfits if not name.startswith(inside)]
    if misfits:
        where = " outside the last layer" if new_head else ""
        remedy = "choose the model of that file" + ("" if new_head else ", or add --new-head for other classes")
        raise ModelMistake(
            f"expected the model's tensors in {origin}{where}, got {_some([text for _, text in misfits])}; {remedy}"
        )
    module.load_state_dict({name: wanted[name] if name in anew else given[name] for name in wanted})
    return anew
