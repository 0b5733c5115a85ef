"""One model of every task, by its name: ranks together have the gradients of one process on all samples."""

import pytest
import torch
from torch import Tensor

from ddp import discover
from ddp.context import DistContext
from ddp.loader import Batch
from ddp.loop import backward
from ddp.task import Task
from models import zoo
from tests.generative_runs import SHARES, largest_difference, trainer_for
from tests.ranks import run_ranks

ENTRIES = {
    "adversarial": "dcgan-digits",
    "classification": "convnet",
    "control": "dqn-mlp",
    "detection": "yolo-small",
    "reconstruction": "vae",
    "regression": "sine-rnn",
    "segmentation": "unet-small",
}
"""Task -> the model that stands for it; those for images are as small as their tasks allow."""


def task_of(name: str) -> Task:
    task: Task = discover.find("ddp.tasks", name, kind="task").TASK
    return task


def share_of(ctx: DistContext, task: Task, shape: tuple[int, ...], classes: int) -> Batch:
    """This rank's share of 7 random samples, of which no two ranks have as many."""
    sizes = SHARES[ctx.world_size]
    start = sum(sizes[: ctx.rank])
    mine = slice(start, start + sizes[ctx.rank])
    inputs, targets, masks = task.random_batch(shape, classes, 7, torch.Generator().manual_seed(1))
    targets = targets.double() if targets.is_floating_point() else targets
    return Batch(
        inputs.double()[mine], targets[mine], 7, torch.arange(7)[mine], masks=None if masks is None else masks[mine]
    )


def gradients(model: str, ranks: int) -> list[dict[str, Tensor]]:
    """Of each rank, of every phase, by its number and the parameter's name; float64, with SyncBN."""
    spec = zoo.find(model)
    task = task_of(spec.task)

    def work(ctx: DistContext) -> dict[str, Tensor]:
        trainer = trainer_for(ctx, task, lambda: spec.build(spec.shape, spec.classes), sync_bn=True)
        batch = task.prepare(trainer, share_of(ctx, task, spec.shape, spec.classes))
        found: dict[str, Tensor] = {}
        for number, phase in enumerate(task.phases):
            trainer.optimizer.zero_grad(set_to_none=True)
            backward(trainer, batch, phase)
            for name, parameter in trainer.module.named_parameters():
                if parameter.grad is not None:
                    found[f"{number} {name}"] = parameter.grad.clone()
        return found

    return run_ranks(work, ranks)


def test_every_task_has_an_entry_here() -> None:
    assert sorted(ENTRIES) == discover.names("ddp.tasks")


@pytest.mark.parametrize("task", sorted(ENTRIES))
def test_two_and_three_ranks_have_the_gradients_of_one_process(task: str) -> None:
    (expected,) = gradients(ENTRIES[task], 1)
    trained = {name.partition(" ")[2] for name in expected}
    spec = zoo.find(ENTRIES[task])
    module = spec.build(spec.shape, spec.classes)
    assert trained == {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for ranks in (2, 3):
        for found in gradients(ENTRIES[task], ranks):
            assert largest_difference(found, expected) < 1e-10
