"""Parts of a model that are not trained: their weights get no gradients, and their BatchNorm statistics stand still."""

from dataclasses import dataclass

from torch import nn

from ddp.discover import unknown
from ddp.mistake import require

BACKBONE = "backbone"
"""Word for all parts of a model but its last layer; a part that the model itself calls so goes first."""
NONE = "none"
"""Word for no part at all."""
REMEDY = "give names of parts as the model's own code has them, such as conv1,layer1, or backbone"


@dataclass(frozen=True)
class Frozen:
    """What was frozen."""

    parameters: tuple[str, ...]
    """Names of the frozen parameters; of one with several names, each that was asked for."""
    frozen_size: int
    """Numbers in frozen parameters."""
    trained_size: int
    """Numbers in the parameters that are still trained."""


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a name is one of the prefixes or lies below one: conv1 holds conv1.weight, but not conv10.weight."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _names(module: nn.Module) -> list[str]:
    """Names of all parameters and buffers, those with several included."""
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return [name for name, _ in tensors]


def _backbone(module: nn.Module) -> list[str]:
    """The largest parts with parameters or buffers that do not hold the last layer.

    The last layer is the module registered last of those with parameters of their own. Layers without any, such as
    dropout in front of it, are in no part that is frozen.
    """
    layers = [name for name, layer in module.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    last = layers[-1] if layers else ""
    if not last:
        return []
    parts: dict[str, None] = {}
    for name in _names(module):
        words, depth = name.split("."), 1
        while _within(last, (".".join(words[:depth]),)):
            depth += 1
        if not _within(name, (last,)):
            parts[".".join(words[:depth])] = None
    return list(parts)


def _resolved(module: nn.Module, prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of parts behind names and words."""
    if prefixes == (NONE,):
        return ()
    if BACKBONE not in prefixes or any(_within(name, (BACKBONE,)) for name in _names(module)):
        return prefixes
    return (*(prefix for prefix in prefixes if prefix != BACKBONE), *_backbone(module))


def freeze(module: nn.Module, prefixes: tuple[str, ...]) -> Frozen:
    """Take the parameters below some names out of training; call it before the model is wrapped.

    Raises Mistake for a name below which there is neither a parameter nor a buffer, and if nothing is left to train.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    asked, prefixes, names = prefixes, _resolved(module, prefixes), _names(module)
    require(
        bool(prefixes) or asked == (NONE,) or not asked,
        "a model of more than one layer for --freeze backbone",
        "one layer",
        "omit --freeze",
    )
    for prefix in prefixes:
        if not any(_within(name, (prefix,)) for name in names):
            parts = list(dict.fromkeys(name.partition(".")[0] for name in names))
            raise unknown("part of the model with weights for --freeze", prefix, parts, REMEDY)
    frozen = {name: parameter for name, parameter in parameters.items() if _within(name, prefixes)}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    distinct = list(module.parameters())
    trained_size = sum(parameter.numel() for parameter in distinct if parameter.requires_grad)
    require(trained_size > 0, "a part of the model that is still trained", f"--freeze {','.join(asked)}", "freeze less")
    total = sum(parameter.numel() for parameter in distinct)
    return Frozen(parameters=tuple(frozen), frozen_size=total - trained_size, trained_size=trained_size)


def _keeps_statistics(layer: nn.Module) -> bool:
    return getattr(layer, "running_mean", None) is not None and not any(True for _ in layer.children())


def hold_still(module: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Put frozen parts into evaluation mode; call it after each `.train()`, of the model that is not wrapped.

    There BatchNorm, SyncBatchNorm too, normalises by its running statistics and leaves them as they are, without other
    ranks, and dropout is off: a frozen part is one function throughout. A layer with running statistics is frozen as
    well if each of its parameters was named by itself.
    """
    prefixes = _resolved(module, prefixes)
    for name, layer in module.named_modules(remove_duplicate=False):
        own = [f"{name}.{short}".removeprefix(".") for short, _ in layer.named_parameters(recurse=False)]
        named_singly = bool(own) and all(_within(each, prefixes) for each in own)
        if _within(name, prefixes) or (named_singly and _keeps_statistics(layer)):
            layer.eval()
