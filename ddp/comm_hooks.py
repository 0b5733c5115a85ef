"""What DDP does with a bucket of gradients: halve its bytes on the way, or send it at a low rank (PowerSGD)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from ddp.parallel_config import ParallelConfig

Hook = Callable[[Any, dist.GradBucket], torch.futures.Future[Tensor]]

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
EPSILON = 1e-8
"""What PowerSGD adds to a norm: without it a layer whose gradient is zero becomes NaN."""


def halving(dtype: torch.dtype) -> Hook:
    """A hook that averages gradients in a type of 16 bits. It divides before it rounds, so that sums overflow less."""

    def hook(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        small = buffer.div_(group.size()).to(dtype)
        future = dist.all_reduce(small, group=group, async_op=True).get_future()
        return future.then(lambda done: buffer.copy_(done.value()[0]))

    return hook


def low_rank(state: PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """torch's PowerSGD, one bucket at a time on the CPU.

    Its second and third communication start when the one before ends. On a GPU all ranks issue them in the same order;
    gloo's threads do not, and ranks with several buckets under way would wait for each other for ever.
    """
    future = powerSGD_hook(state, bucket)
    if bucket.buffer().device.type == "cpu":
        future.wait()
    return future


def register(model: DistributedDataParallel, config: ParallelConfig, group: dist.ProcessGroup) -> PowerSGDState | None:
    """Give DDP the hook that the options name -> what PowerSGD remembers between steps, or None without it."""
    if config.comm_hook in HALVES:
        model.register_comm_hook(group, halving(HALVES[config.comm_hook]))
    if config.comm_hook != "powersgd":
        return None
    state = PowerSGDState(
        group,
        matrix_approximation_rank=config.powersgd_rank,
        start_powerSGD_iter=config.powersgd_start,
        orthogonalization_epsilon=EPSILON,
    )
    model.register_comm_hook(state, low_rank)
    return state


def powersgd_state(state: PowerSGDState) -> dict[str, Any]:
    """What PowerSGD remembers, as a weights-only load takes it: tensors by the number of their bucket, and numbers.

    The numbers are those of the buckets after DDP's first pass, which come out the same in every launch of a run.
    """
    random = state.rng.get_state(legacy=False)
    return {
        "iteration": state.iter,
        "error": {index: tensor.clone() for index, tensor in state.error_dict.items()},
        "p": {index: tensor.clone() for index, tensor in state.p_memory_dict.items()},
        "q": {index: tensor.clone() for index, tensor in state.q_memory_dict.items()},
        "random": {"key": random["state"]["key"].tolist(), "pos": int(random["state"]["pos"])},
    }


def load_powersgd(state: PowerSGDState, saved: dict[str, Any], device: torch.device) -> None:
    """Undo `powersgd_state`."""
    state.iter = saved["iteration"]
    state.error_dict = {index: tensor.to(device) for index, tensor in saved["error"].items()}
    state.p_memory_dict = {index: tensor.to(device) for index, tensor in saved["p"].items()}
    state.q_memory_dict = {index: tensor.to(device) for index, tensor in saved["q"].items()}
    random = state.rng.get_state(legacy=False)
    random["state"] = {"key": np.array(saved["random"]["key"], dtype=np.uint32), "pos": saved["random"]["pos"]}
    state.rng.set_state(random)
