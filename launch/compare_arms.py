"""One rank of an arm of `ringmark compare`: trains a block of steps whenever it is told to, and sleeps in between.

It runs as a script, with the packages of the commit that is compared in front of Python's path, so it imports only
what has been there for long.
"""

import gc
import json
import os
import socket
import sys
import time
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddp.config import TrainConfig
    from ddp.context import DistContext
    from ddp.env import RankInfo
    from ddp.loader import Batch
    from ddp.trainer import Trainer


@dataclass(frozen=True)
class _Subject:
    """A model that trains on one batch."""

    trainer: "Trainer"
    batch: "Batch"
    gpu: Any
    """What reads the counters of this rank's GPU; None if nothing can."""


def _subject(config: "TrainConfig", ctx: "DistContext") -> _Subject:
    """What the options describe, on one synthetic batch that stays on the device."""
    import torch

    from bench.train_blocks import task_of
    from ddp.task import random_step
    from ddp.trainer import make_trainer
    from models import zoo

    spec = zoo.find(config.model)
    task = task_of(spec)
    torch.manual_seed(config.seed)
    module = zoo.build(spec, spec.shape, spec.classes, task.output_shape(spec.shape, spec.classes))
    # A constant rate: after the many steps of a comparison a schedule would have come to its end.
    config = replace(config, optim=replace(config.optim, lr=1e-3, lr_scaling="none", schedule="constant", warmup=0))
    trainer = make_trainer(module, config, ctx, total_steps=1, task=task)
    samples = config.global_batch(ctx.world_size) // ctx.world_size
    batch = random_step(task, spec.shape, spec.classes, samples, ctx, channels_last=config.channels_last)
    return _Subject(trainer, batch, _counters(ctx))


def _counters(ctx: "DistContext") -> Any:
    try:
        from bench.gpu_counters import counters_of
    except ImportError:  # a commit from before there were any
        return None
    return counters_of(ctx.device)


def _pin() -> None:
    """Keep this rank to as many CPUs as it has threads: the same ones in both arms.

    CPUs differ for seconds at a time in who shares their core, and a scheduler leaves each arm where it was; on a
    virtual machine of two that looked like 6 % between equal arms.
    """
    import torch

    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[: torch.get_num_threads()])


def _block(subject: _Subject, ctx: "DistContext", steps: int) -> dict[str, Any]:
    """Train that many steps -> their times on every rank."""
    from bench.clock import timed_block
    from ddp.loop import train_steps

    started_s = time.process_time()
    with timed_block(ctx) as (block, mark):
        train_steps(subject.trainer, repeat(subject.batch, steps), lambda batch, loss: mark())
    gpu = None if subject.gpu is None else subject.gpu.read()
    parts = ctx.gather([block.wall_s, block.step_s, time.process_time() - started_s, gpu])
    return {
        "samples": subject.batch.global_count,
        "wall_s": [part[0] for part in parts],
        "step_s": [part[1] for part in parts],
        "cpu_s": [part[2] for part in parts],
        "gpus": [part[3] for part in parts] if ctx.device.type == "cuda" else [],
    }


def serve(config: "TrainConfig", ctx: "DistContext", path: str) -> None:
    """Answer the orders that rank 0 reads from a socket, until it closes. All other ranks wait for rank 0."""
    from bench.environment import capture
    from launch.revision import revision

    environment = capture(ctx) | revision()
    subject = _subject(config, ctx)
    patient = ctx.patient  # waits for as long as the other arm needs, and not on a GPU, which the other arm uses
    gc.collect()
    gc.freeze()  # each block begins with a collection, which now has little to look at
    lines = None
    if ctx.is_main:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        lines = connection.makefile("rw", encoding="utf-8")
        parameters = sum(parameter.numel() for parameter in subject.trainer.module.parameters())
        _tell(lines, {"environment": environment, "parameters": parameters})
    while True:
        text = lines.readline() if lines is not None else ""
        steps = patient.gather(json.loads(text)["steps"] if text else 0)[0]
        if steps == 0:
            return
        answer = _block(subject, ctx, steps)
        if lines is not None:
            _tell(lines, answer)


def _tell(lines: Any, value: dict[str, Any]) -> None:
    lines.write(json.dumps(value) + "\n")
    lines.flush()


def prepare(words: "Sequence[str]", path: str, info: "RankInfo") -> Any:
    """Read and check the options -> the work of this rank."""
    from ddp.config import TrainConfig
    from launch.argv import parse

    config = parse(TrainConfig, words, prog="ringmark compare", description="One arm of a comparison.")

    def work() -> int:
        from ddp.context import pick_device, process_group

        device = pick_device(config.device, info)
        if device.type == "cpu":
            _pin()
        with process_group(info, device=device, timeout_s=config.timeout_s) as ctx:
            serve(config, ctx, path)
        return 0

    return work


def main() -> NoReturn:
    """Be a rank: `python compare_arms.py SOCKET OPTIONS`."""
    from launch.worker import end_with, run_worker

    path, *words = sys.argv[1:]
    end_with(lambda: run_worker(lambda info: prepare(words, path, info)))


if __name__ == "__main__":
    main()
