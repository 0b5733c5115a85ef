"""An exponential moving average of a model's weights, which often evaluates better than the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ddp.mistake import require


def _average_of(tensor: Tensor) -> Tensor:
    """Where an average begins: at a copy, in float32 at least, since half precision would lose small changes."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def _can_be_averaged(buffer: Tensor) -> bool:
    """Not counters; nor masks that hold infinities, since the average of two infinities is not a number."""
    return buffer.is_floating_point() and bool(buffer.isfinite().all())


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that ranks hold shares of, on the CPU, where there is room for it; any other as it is."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def _fill(target: Tensor, whole: Tensor) -> None:
    """Undo `_whole`, in place; every rank has the whole, so nothing is sent."""
    if isinstance(target, DTensor):
        whole = distribute_tensor(whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(whole)


class Ema:
    """The moving average of the trained parameters and floating buffers of a model.

    What is not averaged is the model's own: frozen parameters, integer buffers, and buffers with infinities. Make it
    when the model is wrapped, since wrapping may change what its parameters are. Raises Mistake if `decay` is not in
    [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        require(0 <= decay < 1, "a decay of the moving average in [0, 1)", decay, "try 0.999")
        self.decay = decay
        self.updates = 0
        self.parameters = {name: _average_of(each) for name, each in module.named_parameters() if each.requires_grad}
        self.buffers = {name: _average_of(each) for name, each in module.named_buffers() if _can_be_averaged(each)}

    def _pairs(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """All averages, and the model's tensors that they belong to."""
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        own = [*(parameters[name] for name in self.parameters), *(buffers[name] for name in self.buffers)]
        return [*self.parameters.values(), *self.buffers.values()], [each.detach() for each in own]

    def update(self, module: nn.Module) -> None:
        """Move towards the model; to be called after each optimizer step that was not skipped.

        average = d * average + (1 - d) * model, where d = min(decay, (1 + n) / (10 + n)) after n updates, so that the
        first weights are soon forgotten. Source: tf.train.ExponentialMovingAverage with num_updates.
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, own = self._pairs(module)
        values = [value.to(average.dtype) for average, value in zip(averages, own, strict=True)]
        split = len(self.parameters)  # apart from buffers, since with fsdp2 these are shards and those are not
        for part in (slice(split), slice(split, None)):
            if averages[part]:
                get_ema_multi_avg_fn(decay)(averages[part], values[part], self.updates)
        self.updates += 1

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Let the model hold the averages for the length of a `with` block; what changes them inside is lost.

        Contents are copied, so parameters stay the tensors that the optimizer and DDP know. Takes the memory of one
        more copy of the model.
        """
        averages, own = self._pairs(module)
        kept = [tensor.clone() for tensor in own]
        try:
            for tensor, average in zip(own, averages, strict=True):
                tensor.copy_(average)
            yield
        finally:
            for tensor, value in zip(own, kept, strict=True):
                tensor.copy_(value)

    def shared_state(self) -> dict[str, Any]:
        """What is the same on all ranks, and this rank's buffers for one that has none, as references.

        Every rank must call this.
        """
        parameters = {name: _whole(average) for name, average in self.parameters.items()}
        return {"updates": self.updates, "parameters": parameters, "buffers": dict(self.buffers)}

    def own_state(self) -> dict[str, Any]:
        """What each rank has of its own: averages of buffers, which differ without SyncBN; as references."""
        return {"buffers": dict(self.buffers)}

    def load(self, shared: dict[str, Any], own: dict[str, Any] | None) -> None:
        """Undo `shared_state` and `own_state`; `own` is None on a rank that did not exist then."""
        self.updates = shared["updates"]
        for name, average in self.parameters.items():
            _fill(average, shared["parameters"][name])
        for name, average in self.buffers.items():
            _fill(average, (shared if own is None else own)["buffers"][name])
