"""A comparison of all state that must be the same on every rank: finds a faulty machine before its numbers spread."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ddp.context import DistContext

State = Mapping[str, Tensor | float | int]


@dataclass(frozen=True)
class Difference:
    """One name whose value is not the same on every rank."""

    name: str
    groups: tuple[tuple[int, ...], ...]
    """Ranks that agree with one another, the largest group first."""
    others: int
    """Further names that differ."""

    @property
    def minority(self) -> tuple[int, ...]:
        """Ranks that differ from more than half of all; () if no value has that many."""
        outside = tuple(sorted(rank for group in self.groups[1:] for rank in group))
        return outside if len(self.groups[0]) > len(outside) else ()

    def __str__(self) -> str:
        more = f" (and {self.others} more)" if self.others else ""
        if self.minority:
            return f"a different {self.name}{more} on {_ranks(self.minority)}"
        versions = " against ".join(_ranks(group) for group in self.groups)
        return f"{len(self.groups)} versions of {self.name}{more}: {versions}"


class RanksDifferError(RuntimeError):
    """State that must be the same on every rank is not, as after a bit flip in the memory of one."""

    def __init__(self, step: int, difference: Difference) -> None:
        super().__init__(step, difference)
        self.step, self.difference = step, difference

    def __str__(self) -> str:
        return (
            f"expected the same bits on every rank after step {self.step}, got {self.difference}; resume from a "
            "checkpoint no newer than the last check that passed; if the same rank differs again, suspect its machine, "
            "otherwise code that treats ranks differently"
        )


def _ranks(ranks: tuple[int, ...]) -> str:
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"


def _hash(data: Tensor | float | int) -> str:
    """64 bits of BLAKE2b, as hex, of a number or of a tensor's type, shape and bytes."""
    hashed = blake2b(digest_size=8)
    if isinstance(data, Tensor):
        hashed.update(f"{data.dtype} {list(data.shape)} ".encode())
        hashed.update(data.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        hashed.update(repr(data).encode())  # exact, and the same for every NaN
    return hashed.hexdigest()


def fingerprints(state: State) -> dict[str, str]:
    """A hash of each tensor and number: 64 bits as hex, the same for the same bits, type and shape on any device.

    Tensors that are shared out among the ranks (DTensor) are left out: each rank holds a part of its own.
    """
    return {name: _hash(data) for name, data in state.items() if not isinstance(data, DTensor)}


def compare(ctx: DistContext, state: State) -> Difference | None:
    """The first name, in rank 0's order, whose value is not the same on every rank; None if all are.

    The answer is the same on every rank, and every rank must call this. A name that a rank does not have is different
    there. Only if one hash over all differs are those of every name exchanged.
    """
    mine = fingerprints(state)
    together = blake2b(json.dumps(sorted(mine.items())).encode(), digest_size=8).hexdigest()
    if len(set(ctx.gather(together))) == 1:
        return None
    parts: list[dict[str, str]] = ctx.gather(mine)
    names = dict.fromkeys(name for part in parts for name in part)  # a set whose order is the same on every rank
    differing = [name for name in names if len({part.get(name) for part in parts}) > 1]
    holders: dict[str | None, list[int]] = {}
    for rank, part in enumerate(parts):
        holders.setdefault(part.get(differing[0]), []).append(rank)
    groups = sorted((tuple(ranks) for ranks in holders.values()), key=lambda ranks: (-len(ranks), ranks))
    return Difference(differing[0], tuple(groups), others=len(differing) - 1)


def replicated_state(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    scaler: torch.amp.GradScaler,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    buffers: bool,
) -> dict[str, Tensor | float | int]:
    """What every rank must hold alike, by name, as references.

    Leave out `buffers` where each rank has its own, and the optimizer (None) where its state is kept by one rank each.
    """
    parameters = dict(module.named_parameters())
    state: dict[str, object] = dict(parameters)
    if buffers:
        state |= dict(module.named_buffers())
    if optimizer is not None:
        for name, parameter in parameters.items():
            values = optimizer.state.get(parameter, {})
            state |= {f"optimizer.{name}.{key}": value for key, value in values.items()}
        for number, group in enumerate(optimizer.param_groups):
            state |= {f"{key}.group{number}": value for key, value in group.items()}
    scaling = scaler.state_dict()  # empty where it is off
    state |= {f"scaler.{key.lstrip('_')}": scaling[key] for key in ("scale", "_growth_tracker") if key in scaling}
    state["scheduler.last_epoch"] = scheduler.last_epoch
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor | float | int) and not isinstance(value, bool)
    }
