"""`ringmark demo`: from a fresh clone to a trained model and a scaling report, on this machine, in a few minutes."""

import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cases.scaling import Options as ScalingOptions
from ddp.config import TrainConfig
from ddp.input_config import InputConfig
from ddp.optim_config import OptimConfig
from launch.argv import parse, to_argv
from launch.benchmark import run_case
from launch.commands import show_report
from launch.torchrun import Launch, run


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Train a small net, measure a larger one, and report."""

    out: Path = Path("runs/demo")
    """Folder for records, reports and TensorBoard events; what an earlier demo left there is removed."""


def _gpus() -> int:
    """GPUs that PyTorch can use here."""
    import torch

    return torch.cuda.device_count()


def _rank_counts(gpus: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all GPUs; without GPUs 1 and 2."""
    if gpus == 0:
        return (1, 2)
    powers = [2**exponent for exponent in range(gpus.bit_length()) if 2**exponent <= gpus]
    return tuple(sorted({*powers, gpus}))


def clear(out: Path) -> None:
    """Remove an earlier demo's results, and nothing else."""
    for name in ("tensorboard", "checkpoints"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("records.jsonl", "report.md", "report.html", "report.csv", "model.pt"):
        (out / name).unlink(missing_ok=True)


def demo(argv: Sequence[str]) -> int:
    """Run the demo -> its exit code."""
    options = parse(DemoOptions, argv, prog="ringmark demo", description="Train, measure and report on this machine.")
    started = time.monotonic()
    gpus = _gpus()
    ranks = _rank_counts(gpus)
    clear(options.out)
    config = TrainConfig(
        model="convnet",
        epochs=15,
        sync_bn=True,
        amp="bf16" if gpus else "off",
        out=options.out,
        input=InputConfig(data="digits"),
        optim=OptimConfig(lr=0.2),
    )
    print(f"1/2 train a small convnet on 1,797 digits with {min(2, gpus or 2)} ranks", flush=True)
    launch = Launch(nproc_per_node=min(2, gpus or 2), module="launch.train", argv=tuple(to_argv(config)))
    print(launch.shown(), flush=True)
    code = run(launch)
    if code != 0:
        return code
    print(f"\n2/2 measure ResNet-18 at {', '.join(map(str, ranks))} ranks", flush=True)
    code = _measure(options.out, ranks, on_gpu=gpus > 0)
    if code in (2, 130):
        return code
    show_report(options.out)
    cores = len(os.sched_getaffinity(0))
    print(f"tensorboard: {options.out / 'tensorboard'}")
    print(f"the demo took {time.monotonic() - started:.0f} s on {cores} cores" + (f" and {gpus} GPUs" if gpus else ""))
    return code


def _measure(out: Path, ranks: tuple[int, ...], *, on_gpu: bool) -> int:
    from bench.cases import scaling

    common = math.lcm(*ranks)  # strong scaling shares the batch equally among any of these numbers of ranks
    wanted = 512 if on_gpu else 16
    options = ScalingOptions(
        out=out,
        model="resnet18-cifar",
        ranks=ranks,
        batch_size=math.ceil(wanted / common) * common,
        amp="bf16" if on_gpu else "off",
        channels_last=on_gpu,
        rounds=8,
        block_s=2.5,
    )
    return run_case("scaling", scaling, options)
