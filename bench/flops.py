"""Floating-point operations of one training step, per sample: counted on tensors that hold no numbers.

One multiply-add is 2 FLOP. Counted are matrix products, convolutions and attention, forward and backward; what works
element by element, normalises, pools or resizes is not, as in published figures.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.train_blocks import task_of
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.task import Task, random_step
from ddp.trainer import make_trainer
from models.spec import ModelSpec, Shape

SAMPLES = 2
"""Samples of the step: BatchNorm refuses one."""
UNCOUNTED = {
    *("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "lstm", "gru", "rnn_tanh", "rnn_relu"),
    *("mv", "addmv", "dot", "vdot", "addbmm", "addr", "_trilinear", "cdist", "_cdist_forward", "_fft_r2c", "_fft_c2c"),
    *("linalg_lstsq", "linalg_solve_ex", "linalg_inv_ex", "_linalg_svd", "_linalg_eigh", "deform_conv2d"),
}
"""Operators of many multiply-adds that torch's counter leaves out: where one is met, the number is not known."""


class _Alone(DistContext):
    """A group of one rank without communication."""

    def barrier(self) -> None:
        """Nobody to wait for."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """This rank's value."""
        return [value]


def _alone(device: torch.device) -> DistContext:
    no_group: Any = None
    return _Alone(
        rank=0,
        world_size=1,
        local_rank=0,
        local_world_size=1,
        node_rank=0,
        device=device,
        backend="none",
        timeout_s=0.0,
        group=no_group,
        patient_group=no_group,
    )


class _Names(TorchDispatchMode):
    """Collects the names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note the operator, and run it."""
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _convolution_backward(
    grad_shape: Sequence[int], x_shape: Sequence[int], weight_shape: Sequence[int], *rest: Any, **ignored: Any
) -> int:
    """FLOP of a convolution's gradients: each costs as much as its forward pass, whatever the groups.

    torch's own formula counts the gradient of a grouped convolution's weights once for every group.
    """
    transposed, mask = bool(rest[4]), rest[7]
    positions = math.prod((x_shape if transposed else grad_shape)[2:])
    each = 2 * x_shape[0] * positions * math.prod(weight_shape)
    return each * (int(mask[0]) + int(mask[1]))


FORMULAS: dict[Any, Callable[..., int]] = {torch.ops.aten.convolution_backward: _convolution_backward}
"""In place of torch's own."""


@dataclass(frozen=True)
class _Subject:
    """What is counted."""

    build: Callable[[Shape, int], nn.Module]
    task: Task
    shape: Shape
    classes: int


def _count(subject: _Subject, device: torch.device) -> int | None:
    """FLOP of one step's forward and backward passes; None if an operator was met that is not counted."""
    ctx = _alone(device)
    with torch.device(device):
        module = subject.build(subject.shape, subject.classes)
    trainer = make_trainer(module, TrainConfig(strategy="single"), ctx, 1, subject.task)
    trainer.train_mode()
    names, counter = _Names(), FlopCounterMode(display=False, custom_mapping=FORMULAS)
    batch = random_step(subject.task, subject.shape, subject.classes, SAMPLES, ctx)
    with names, counter:
        batch = subject.task.prepare(trainer, batch)
        for phase in subject.task.phases:
            losses = phase.losses(trainer, batch)
            part = module if phase.part is None else module.get_submodule(phase.part)
            changed = [each for each in part.parameters() if each.requires_grad]
            losses.sum().backward(inputs=changed)
    return None if names.names & UNCOUNTED else int(counter.get_total_flops())


def training_flop(spec: ModelSpec, shape: Shape, classes: int) -> float | None:
    """FLOP of one sample in a training step, forward and backward; None where it cannot be counted.

    It needs no memory for weights and activations, but where losses depend on the numbers themselves, as in detection:
    these are counted on the CPU, with random samples.
    """
    subject = _Subject(spec.build, task_of(spec), shape, classes)
    state = torch.get_rng_state()
    try:
        for device in ("meta", "cpu"):
            try:
                total = _count(subject, torch.device(device))
            except Exception:  # code that asks meta tensors for their numbers fails in many ways
                continue
            return None if total is None else total / SAMPLES
        return None
    finally:
        torch.set_rng_state(state)
