"""Worker entry: `torchrun --nproc_per_node=2 -m launch.train --model ...`, or alone, as one rank, without torchrun."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from launch.guard import check_not_shadowed

if TYPE_CHECKING:
    from ddp.config import TrainConfig
    from ddp.context import DistContext
    from ddp.env import RankInfo


def _train(config: "TrainConfig", ctx: "DistContext") -> int:
    import torch

    from bench.environment import capture
    from bench.record import Record, append
    from ddp.discover import find
    from ddp.fit import fit, save_model
    from ddp.progress import Display, Silent
    from launch.revision import revision
    from models import zoo

    spec = zoo.find(config.model)
    dataset = find("ddp.datasets", config.input.data, kind="data set").load(config.input, spec.shape, spec.classes)
    torch.manual_seed(config.seed)
    module = zoo.build(spec, dataset.shape, len(dataset.classes))
    environment = capture(ctx) | revision()
    out = config.out if ctx.is_main else None
    if ctx.is_main:
        with Display(config.epochs, out) as display:
            trainer, epochs = fit(module, dataset, config, ctx, display)
    else:
        trainer, epochs = fit(module, dataset, config, ctx, Silent())
    if out is not None:
        save_model(out / "model.pt", trainer.module)
        cell: dict[str, Any] = asdict(config) | {
            "ranks": ctx.world_size,
            "global_batch_size": config.global_batch(ctx.world_size),
        }
        raw = {
            "parameters": sum(parameter.numel() for parameter in trainer.module.parameters()),
            "train_samples": len(dataset.train),
            "test_samples": len(dataset.test),
            "skipped_steps": trainer.skipped_steps,
            "epochs": epochs,
        }
        append(out, Record(case="fit", cell=cell, status="ok", raw=raw, environment=environment))
    return 0


def prepare(argv: Sequence[str], info: "RankInfo") -> Callable[[], int]:
    """Read and check the flags -> the work of this rank. Raises UsageError or ValueError for a person's mistake."""
    from ddp.config import TrainConfig
    from launch.argv import parse
    from launch.preflight import check_training

    config = parse(TrainConfig, argv, prog="launch.train", description="Train one model on the ranks of this launch.")
    check_training(config, info.world_size)

    def work() -> int:
        from ddp.context import pick_device, process_group

        if config.out is not None:
            config.out.mkdir(parents=True, exist_ok=True)
        with process_group(info, device=pick_device(config.device, info), timeout_s=config.timeout_s) as ctx:
            return _train(config, ctx)

    return work


def main() -> int:
    """Train; returns the exit code."""
    try:
        check_not_shadowed()
    except ValueError as error:
        print(f"ringmark: {error}", file=sys.stderr)
        return 2
    from launch.worker import run_worker

    return run_worker(lambda info: prepare(sys.argv[1:], info))


if __name__ == "__main__":
    sys.exit(main())
