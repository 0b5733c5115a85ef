"""The process group: made and destroyed here only, and carried to everyone as one frozen argument."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from ddp.env import RankInfo
from ddp.mistake import Mistake

LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says on a rank that was waiting for one that is gone."""

PATIENCE = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class DistContext:
    """One rank's view of a group of ranks; every method but the properties is a collective of that group."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    device: torch.device
    backend: str
    timeout_s: float
    """How long a rank of the group waits for the others."""
    group: dist.ProcessGroup
    patient_group: dist.ProcessGroup

    @property
    def patient(self) -> "DistContext":
        """The same ranks, on the CPU and with no timeout to speak of: for what one rank does while the others wait.

        Writing or verifying a large checkpoint may take longer than any step does. A rank that dies is noticed all the
        same, since its connections close.
        """
        long_s = PATIENCE.total_seconds()
        return replace(self, device=torch.device("cpu"), backend="gloo", timeout_s=long_s, group=self.patient_group)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def synchronize(self) -> None:
        """Wait until this rank's device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def barrier(self) -> None:
        """Wait until every rank of the group is here and its device is idle."""
        self.synchronize()
        dist.all_reduce(torch.zeros(1, device=self.device), group=self.group)
        self.synchronize()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Average a tensor over the ranks, in place."""
        return self.sum(tensor).div_(self.world_size)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank. The value travels as JSON: nothing is ever unpickled."""
        payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([payload.numel()], device=self.device), group=self.group)
        longest = int(max(size.item() for size in sizes))
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: payload.numel()] = payload
        texts = [torch.zeros_like(padded) for _ in range(self.world_size)]
        dist.all_gather(texts, padded, group=self.group)
        return [json.loads(bytes(text[: int(size.item())].tolist())) for text, size in zip(texts, sizes, strict=True)]

    def first(self, ranks: int) -> "DistContext | None":
        """The group of this group's first ranks, or None on a rank outside it. Every rank must call this."""
        members = list(range(ranks))
        if ranks == self.world_size:
            return self
        group = new_group(members, self.timeout_s)
        patient_group = new_patient_group(members, self.timeout_s)
        if group is None or patient_group is None:
            return None
        return replace(self, world_size=ranks, group=group, patient_group=patient_group)


def new_group(ranks: list[int], timeout_s: float, backend: str | None = None) -> dist.ProcessGroup | None:
    """A group of these ranks, None on a rank outside it. Every rank of the launch must call this.

    It is whole when this returns: with gloo, torch's own function returns while others still connect to this rank, and
    if it has nothing to do and leaves by then, they fail. Raises RuntimeError if it is not so after `timeout_s`.
    """
    group = dist.new_group(ranks, backend=backend, timeout=timedelta(seconds=timeout_s))
    if not isinstance(group, dist.ProcessGroup):
        return None
    if dist.get_backend(group) == "gloo":
        dist.all_reduce(torch.zeros(1), group=group)
    return group


def new_patient_group(ranks: list[int], timeout_s: float) -> dist.ProcessGroup | None:
    """A group whose members may wait for each other for long once it is made, as `new_group` makes it.

    To make it they have no longer than for anything else: a connection that does not come about is a failure.
    """
    group = new_group(ranks, timeout_s, "gloo")
    if group is not None:
        set_timeout(group, PATIENCE)
    return group


def set_timeout(group: dist.ProcessGroup, timeout: timedelta) -> None:
    """How long this rank waits from now on for the others of a group; it was made with another timeout."""
    older = distributed_c10d._set_pg_timeout
    getattr(distributed_c10d, "set_timeout", older)(timeout, group)  # its name since torch 2.15


def pick_device(choice: Literal["auto", "cpu", "cuda"], info: RankInfo) -> torch.device:
    """The device of this rank. Raises Mistake if it asks for a GPU that is not there."""
    gpus = torch.cuda.device_count() if choice != "cpu" else 0
    if choice == "cpu" or (choice == "auto" and gpus == 0):
        return torch.device("cpu")
    if info.local_world_size > gpus:
        raise Mistake(
            f"expected a GPU for each of the {info.local_world_size} ranks of this machine, got {gpus} visible GPUs; "
            f"start {max(gpus, 1)} ranks, or add --device cpu"
        )
    return torch.device("cuda", info.local_rank)


@contextmanager
def process_group(
    info: RankInfo, *, device: torch.device, timeout_s: float, store: dist.Store | None = None
) -> Iterator[DistContext]:
    """Join the launch's process group for the length of a `with` block.

    A process that runs alone gets a group of one, so that nothing else needs to know. `store` replaces the
    rendezvous that torchrun's variables describe.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # before any communication, or each rank opens a context on GPU 0
    if store is None and not info.launched:
        store = dist.HashStore()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        rank=info.rank,
        world_size=info.world_size,
        store=store,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        patient_group = new_patient_group(list(range(info.world_size)), timeout_s)
        assert dist.group.WORLD is not None
        assert patient_group is not None
        yield DistContext(
            rank=info.rank,
            world_size=info.world_size,
            local_rank=info.local_rank,
            local_world_size=info.local_world_size,
            node_rank=info.node_rank,
            device=device,
            backend=backend,
            timeout_s=timeout_s,
            group=dist.group.WORLD,
            patient_group=patient_group,
        )
    finally:
        dist.destroy_process_group()
