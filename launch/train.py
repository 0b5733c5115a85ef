"""Worker entry: `torchrun --nproc_per_node=2 -m launch.train --model ...`, or alone, as one rank, without torchrun."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from launch.guard import refuse_foreign_packages

if TYPE_CHECKING:
    from torch import nn

    from ddp.config import TrainConfig
    from ddp.context import DistContext
    from ddp.env import RankInfo
    from ddp.source import Dataset
    from ddp.task import Task

Result = TypeVar("Result")
NON_FINITE = 5
"""Exit code: the loss became infinite or not a number."""
FAILED = 1
"""Exit code: the ranks differ where they must not, found by --check-every."""
STOPPED = 75
"""Exit code: stopped by a signal with a checkpoint written; start again with --resume auto. EX_TEMPFAIL of sysexits."""


@dataclass(frozen=True)
class _Subject:
    """What is trained."""

    module: "nn.Module"
    dataset: "Dataset"
    """What the model was built for."""
    task: "Task"
    anew: list[str]
    """Names of weights that start anew beside those of a file."""


def _load(config: "TrainConfig") -> _Subject:
    """The model, its task and the data. Raises Mistake or ModelMistake if they do not fit together."""
    import torch

    from ddp.discover import find
    from models import zoo
    from models.initializers import initialize
    from models.pretrained import load_weights
    from models.torchvision_weights import load_downloaded

    spec = zoo.find(config.model)
    task = find("ddp.tasks", spec.task, kind="task").TASK
    dataset = find("ddp.datasets", config.input.data, kind="data set").load(config.input, spec.shape, spec.classes)
    torch.manual_seed(config.seed)
    task.check(config, dataset)
    classes = len(dataset.classes)
    module = zoo.build(spec, dataset.shape, classes, task.output_shape(dataset.shape, classes))
    initialize(module, config.initial.init)
    initial, anew = config.initial, []
    if initial.weights is not None:
        anew = load_weights(module, initial.weights, initial.new_head)
    elif initial.download_weights is not None:
        anew = load_downloaded(module, config.model, initial.download_weights, initial.new_head)
    return _Subject(module, dataset, task, anew)


def _download(config: "TrainConfig", ctx: "DistContext") -> Literal[True]:
    """Fetch weights that were asked for, once per machine, before all ranks read them. Raises ModelMistake."""
    from models.torchvision_weights import fetch

    name = config.initial.download_weights
    if name is not None and ctx.local_rank == 0:
        fetch(config.model, name, lambda text: print(f"ringmark: {text}", file=sys.stderr))
    return True


def _fit(config: "TrainConfig", ctx: "DistContext", subject: _Subject) -> dict[str, Any] | None:
    """Train, save the model -> the raw numbers of the run's record; None if the run was stopped before its end."""
    from ddp.fit import fit
    from ddp.folds import folded
    from ddp.progress import Display, Silent
    from launch.reporter import reporter
    from launch.told import Told

    out, speaker = config.out if ctx.is_main else None, reporter(os.environ)
    with Display(config.epochs, out) if ctx.is_main else Silent() as monitor:
        watched: Any = monitor if speaker is None else Told(monitor, speaker)
        done = fit(subject.module, subject.dataset, config, ctx, watched, subject.task)
    if done.stopped:
        return None
    parts = folded(subject.dataset, config.input, config.seed)
    return {
        "metric": subject.task.metric,
        "parameters": sum(parameter.numel() for parameter in done.trainer.module.parameters()),
        "train_samples": len(parts.train),
        "test_samples": len(parts.test),
        "skipped_steps": done.trainer.skipped_steps,
        "epochs": done.epochs,
    }


def _agreed(ctx: "DistContext", work: Callable[[], Result]) -> Result | None:
    """What the work gives, or None on all ranks after the mistake of any of them was told."""
    from ddp.mistake import Mistake
    from launch.worker import said_once
    from models.spec import ModelMistake

    mistake, result = None, None
    try:
        result = work()
    except (Mistake, ModelMistake) as error:
        mistake = error
    return None if said_once(ctx.patient, mistake) else result


def _train(config: "TrainConfig", ctx: "DistContext") -> int:
    """Train and leave a record, also of a failure -> the exit code."""
    from bench.environment import capture
    from bench.failure import recorded
    from bench.record import Record, append
    from ddp.epoch import NonFiniteLossError
    from ddp.self_check import RanksDifferError
    from launch.argv import MISTAKE
    from launch.revision import revision

    subject = _agreed(ctx, lambda: _load(config)) if _agreed(ctx, lambda: _download(config, ctx)) else None
    if subject is None:
        return MISTAKE
    if subject.anew and ctx.is_main:
        names = ", ".join(subject.anew)
        weights = config.initial.weights or f"torchvision's {config.initial.download_weights}"
        print(f"ringmark: {names} start anew, the rest from {weights}", file=sys.stderr)
    environment = capture(ctx) | revision()
    cell = asdict(config) | {"ranks": ctx.world_size, "global_batch_size": config.global_batch(ctx.world_size)}
    try:
        with recorded(config.out, "fit", cell, environment):
            raw = _fit(config, ctx, subject)
    except (NonFiniteLossError, RanksDifferError) as error:  # every rank has it, and rank 0 tells
        if ctx.is_main:
            print(f"ringmark: {error}", file=sys.stderr)
            if config.out is not None:
                failed = Record(case="fit", cell=cell, status="failed", error=str(error), environment=environment)
                append(config.out, failed)
        return NON_FINITE if isinstance(error, NonFiniteLossError) else FAILED
    if raw is None:
        return _stopped(config, ctx)
    if config.out is not None and ctx.is_main:
        append(config.out, Record(case="fit", cell=cell, status="ok", raw=raw, environment=environment))
    return 0


def _stopped(config: "TrainConfig", ctx: "DistContext") -> int:
    """Say how a stopped run goes on -> the exit code, which tells a scheduler whether it can."""
    if ctx.is_main:
        how = "add --resume auto to go on" if config.out else "nothing was saved: there is no --out"
        why = f"after at most {config.stop_after} steps, by --stop-after" if config.stop_after else "by a signal"
        print(f"ringmark: stopped {why}; {how}", file=sys.stderr)
    return STOPPED if config.out else 128 + signal.SIGTERM


def prepare(argv: Sequence[str], info: "RankInfo") -> Callable[[], int]:
    """Read and check the flags -> the work of this rank. Raises what `run_worker` tells a person."""
    from ddp.config import TrainConfig
    from launch.argv import parse
    from launch.preflight import check_training
    from launch.spawn import ranks_to_spawn, spawn

    config = parse(TrainConfig, argv, prog="launch.train", description="Train one model on the ranks of this launch.")
    if info.restarts and config.out is not None:
        config = replace(config, resume="auto")  # the launcher started all ranks again: go on where they were
    ranks = ranks_to_spawn(config, info)
    check_training(config, ranks or info.world_size)
    if ranks is not None:
        from launch.train import main as rank_main  # by its name, which a new process can import

        return lambda: spawn(rank_main, ranks)

    def work() -> int:
        from ddp.context import pick_device, process_group

        if config.out is not None:
            config.out.mkdir(parents=True, exist_ok=True)
        with process_group(info, device=pick_device(config.device, info), timeout_s=config.timeout_s) as ctx:
            return _train(config, ctx)

    return work


def main() -> int:
    """Train; returns the exit code."""
    from launch.worker import run_worker

    return run_worker(lambda info: prepare(sys.argv[1:], info))


if __name__ == "__main__":
    refuse_foreign_packages()
    from launch.worker import end_with

    end_with(main)
