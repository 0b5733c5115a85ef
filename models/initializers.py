"""Named initialisers: another start for the weights of a model's linear and convolutional layers.

Biases of these layers become zero. Normalisation layers and embeddings keep what the model's own code gave them, and so
does a weight that is computed from other parameters (weight norm).
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import init

from models.spec import ModelMistake

Fan = Literal["fan_in", "fan_out"]
"""Whether Kaiming's rule keeps the variance of activations (fan_in) or of gradients (fan_out)."""
NORMAL_STD, TRUNCATED_STD = 0.01, 0.02


def _nothing(weight: Tensor, fan: Fan) -> object:
    return weight


INITIALIZERS: dict[str, Callable[[Tensor, Fan], object]] = {
    "default": _nothing,
    "xavier-uniform": lambda weight, fan: init.xavier_uniform_(weight),
    "xavier-normal": lambda weight, fan: init.xavier_normal_(weight),
    "kaiming-uniform": lambda weight, fan: init.kaiming_uniform_(weight, mode=fan, nonlinearity="relu"),
    "kaiming-normal": lambda weight, fan: init.kaiming_normal_(weight, mode=fan, nonlinearity="relu"),
    "orthogonal": lambda weight, fan: init.orthogonal_(weight),
    "trunc-normal": lambda weight, fan: init.trunc_normal_(
        weight, std=TRUNCATED_STD, a=-2 * TRUNCATED_STD, b=2 * TRUNCATED_STD
    ),
    "normal": lambda weight, fan: init.normal_(weight, std=NORMAL_STD),
}
"""Name -> what fills a weight [out, in, ...], which is contiguous.

Sources: Glorot, Bengio 2010 (xavier); He et al. 2015 (kaiming, for ReLU); Saxe et al. 2013 (orthogonal); Devlin et al.
2018 (trunc-normal: standard deviation 0.02 before it is cut off at twice that, 0.0176 after); Krizhevsky et al. 2012
(normal: standard deviation 0.01).
"""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _own(module: nn.Module, *names: str) -> Iterator[nn.Parameter]:
    """The module's own parameters of these names, where it has them."""
    for name in names:
        parameter = module._parameters.get(name)
        if parameter is not None and parameter.numel() > 0:
            yield parameter


def _layers(module: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor, Fan]]:
    """Each weight: the parameter, the part of it that is one matrix or kernel [out, in, ...], and its fan.

    Kaiming's fan is fan_out for convolutions, as is usual in residual networks, and fan_in for linear layers. A
    transposed convolution stores [in, out, ...]. Attention stores the matrices of query, key and value as one.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            yield from ((weight, weight, "fan_in") for weight in _own(layer, "weight"))
        elif isinstance(layer, CONVOLUTIONS):
            yield from ((weight, weight, "fan_out") for weight in _own(layer, "weight"))
        elif isinstance(layer, TRANSPOSED):
            yield from ((weight, weight.transpose(0, 1), "fan_out") for weight in _own(layer, "weight"))
        elif isinstance(layer, nn.MultiheadAttention):
            for packed in _own(layer, "in_proj_weight"):
                yield from ((packed, part, "fan_in") for part in packed.chunk(3))
            for weight in _own(layer, "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                yield weight, weight, "fan_in"


def _biases(module: nn.Module) -> Iterator[nn.Parameter]:
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)):
            yield from _own(layer, "bias")
        elif isinstance(layer, nn.MultiheadAttention):
            yield from _own(layer, "in_proj_bias")


@torch.no_grad()
def initialize(module: nn.Module, name: str) -> None:
    """Fill a model's weights by the initialiser of that name; `default` does nothing.

    Draws from torch's generator, in the order of the modules, and once for a weight that several layers share. Raises
    ModelMistake with the known names if there is no such initialiser.
    """
    if name not in INITIALIZERS:
        raise ModelMistake(f"expected an initialiser ({', '.join(INITIALIZERS)}), got {name!r}; choose one of them")
    if name == "default":
        return
    done: set[tuple[int, int]] = set()
    for parameter, part, fan in _layers(module):
        key = (id(parameter), part.data_ptr())
        if key in done:
            continue
        done.add(key)
        filled = torch.empty(part.shape, dtype=part.dtype, device=part.device)  # contiguous, as orthogonal_ needs it
        INITIALIZERS[name](filled, fan)
        part.copy_(filled)
    for bias in _biases(module):
        bias.zero_()
