"""Parts of a model that are not trained: their weights get no gradients, and their BatchNorm statistics stand still."""

from dataclasses import dataclass

from torch import nn

from ddp.discover import unknown
from ddp.mistake import require

REMEDY = "give names of parts as the model's own code has them, such as conv1,layer1"


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


def freeze(module: nn.Module, prefixes: tuple[str, ...]) -> Frozen:
    """Take the parameters below some names out of training; call it before the model is wrapped.

    Raises Mistake for a name below which there is neither a parameter nor a buffer, and if nothing is left to train.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    names = [*parameters, *(name for name, _ in module.named_buffers(remove_duplicate=False))]
    for prefix in prefixes:
        if not any(_within(name, (prefix,)) for name in names):
            parts = list(dict.fromkeys(name.partition(".")[0] for name in names))
            raise unknown("part of the model with weights for --freeze", prefix, parts, REMEDY)
    frozen = {name: parameter for name, parameter in parameters.items() if _within(name, prefixes)}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    distinct = list(module.parameters())
    trained_size = sum(parameter.numel() for parameter in distinct if parameter.requires_grad)
    require(
        trained_size > 0, "a part of the model that is still trained", f"--freeze {','.join(prefixes)}", "freeze less"
    )
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
    for name, layer in module.named_modules(remove_duplicate=False):
        own = [f"{name}.{short}".removeprefix(".") for short, _ in layer.named_parameters(recurse=False)]
        named_singly = bool(own) and all(_within(each, prefixes) for each in own)
        if _within(name, prefixes) or (named_singly and _keeps_statistics(layer)):
            layer.eval()
