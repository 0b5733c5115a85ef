"""What a checkpoint holds: everything that decides what the rest of a run computes, to the last bit."""

import hashlib
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.mistake import Mistake
from ddp.source import Dataset
from ddp.trainer import Trainer

MAY_CHANGE = {
    *("out", "resume", "log_every", "timeout_s", "device", "strategy", "batch_size", "global_batch_size"),
    *("checkpoint_every", "keep", "check_every", "stop_after", "patience", "min_delta", "eval_batch_size"),
    *("workers", "cache", "cache_gib", "cache_dir", "prefetch", "data_dir", "download", "init", "weights", "new_head"),
    *("gradient_as_bucket_view", "spawn_ranks"),
}
"""Options that do not decide what a run computes; the global batch is compared as a number of its own."""
BUCKETS = {"bucket_cap_mb", "static_graph", "find_unused_parameters"}
"""Options that decide how DDP arranges gradients: only a rounding, but what PowerSGD remembers depends on it."""


@dataclass
class Progress:
    """How far a run has come, at a step edge."""

    step: int = 0
    """Updates since the run began."""
    epoch: int = 1
    """The open epoch."""
    samples: int = 0
    """Samples of the open epoch that all ranks have seen: a prefix of its order."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """Results of the epochs that are complete."""


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Options by name, without the dataclasses that group them."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value if value is None else str(value)}
    return flat


def fingerprint(config: TrainConfig, dataset: Dataset, ctx: DistContext) -> dict[str, Any]:
    """What must be the same when a run is resumed, as plain text and numbers."""
    labels = hashlib.sha256(dataset.train.labels.tobytes() + dataset.test.labels.tobytes()).hexdigest()
    may_change = MAY_CHANGE if config.parallel.comm_hook == "powersgd" else MAY_CHANGE | BUCKETS
    options = {name: value for name, value in _flat(asdict(config)).items() if name not in may_change}
    sizes = {"training samples": len(dataset.train), "test samples": len(dataset.test), "labels": labels[:16]}
    return options | sizes | {"global batch": config.global_batch(ctx.world_size)}


def check_same(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise Mistake with both values of the first thing that differs from when the checkpoint was written."""
    for name in [*saved, *(name for name in now if name not in saved)]:
        before, after = saved.get(name), now.get(name)
        if before != after:
            raise Mistake(
                f"expected {name} {before} as in the checkpoint, got {after}; "
                "give the same, or start anew in another --out"
            )


def seed_generators(seed: int) -> None:
    """Seed every generator that a model or an optimizer may draw from: those of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(ctx: DistContext) -> dict[str, Any]:
    """State of every random number generator of this rank, in types that a weights-only load accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(ctx.device) if ctx.device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], ctx: DistContext) -> None:
    """Undo `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and ctx.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], ctx.device)


def shared_state(trainer: Trainer, progress: Progress) -> dict[str, Any]:
    """What is the same on every rank."""
    return {
        "model": trainer.strategy.model_state(trainer.module),
        "optimizer": trainer.strategy.optimizer_state(trainer.module, trainer.optimizer),
        "scheduler": trainer.scheduler.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "skipped_steps": trainer.skipped_steps,
        "ema": None if trainer.ema is None else trainer.ema.shared_state(),
        "progress": asdict(progress),
    }


def own_state(trainer: Trainer, meter: dict[str, Any]) -> dict[str, Any]:
    """What each rank has of its own: generators, sums of the open epoch, and buffers, which differ without SyncBN."""
    return {
        "random": random_state(trainer.ctx),
        "buffers": {name: buffer.clone() for name, buffer in trainer.module.named_buffers()},
        "meter": meter,
        "strategy": trainer.strategy.own_state(trainer.wrapped),
        "ema": None if trainer.ema is None else trainer.ema.own_state(),
    }


def restore(trainer: Trainer, shared: dict[str, Any], own: dict[str, Any] | None) -> Progress:
    """Put a trainer into the state of a checkpoint. `own` is None on a rank that did not exist then."""
    trainer.strategy.load_model(trainer.module, shared["model"])
    trainer.strategy.load_optimizer(trainer.module, trainer.optimizer, shared["optimizer"])
    trainer.scheduler.load_state_dict(shared["scheduler"])
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(shared["scaler"])
    trainer.skipped_steps = shared["skipped_steps"]
    if trainer.ema is not None:
        trainer.ema.load(shared["ema"], None if own is None else own["ema"])
    if own is not None:
        buffers = dict(trainer.module.named_buffers())
        with torch.no_grad():
            for name, value in own["buffers"].items():
                buffers[name].copy_(value)
        trainer.strategy.load_own(trainer.wrapped, own["strategy"])
        set_random_state(own["random"], trainer.ctx)
    return Progress(**shared["progress"])
