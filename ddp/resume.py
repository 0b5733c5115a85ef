"""Checkpoints of a run: when they are written, and how a new launch goes on from one, to the same bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddp import checkpoint
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.early_stop import best
from ddp.epoch import Epoch
from ddp.loader import Loader
from ddp.mistake import Mistake
from ddp.source import Dataset, Shape
from ddp.state import Progress, check_same, fingerprint, own_state, restore, seed_generators, shared_state
from ddp.trainer import Trainer
from ddp.warm_up import warm_up

FOLDER = "checkpoints"


def find_start(config: TrainConfig, ctx: DistContext, report: Callable[[str], None]) -> Path | None:
    """The checkpoint to start from, chosen by rank 0; None to start anew. Every rank must call this.

    Raises Mistake on all ranks if there is none where one was named, or one where a new run was asked for.
    """
    choice: list[str | None] = [None, None]
    if ctx.is_main:
        try:
            path = _choose(config, report)
            choice = [None if path is None else str(path), None]
        except (Mistake, checkpoint.CheckpointError) as error:
            choice = [None, str(error)]
    path_text, complaint = ctx.patient.gather(choice)[0]
    if complaint is not None:
        raise Mistake(complaint)
    return None if path_text is None else Path(path_text)


def _choose(config: TrainConfig, report: Callable[[str], None]) -> Path | None:
    folder = None if config.out is None else config.out / FOLDER
    if config.resume == "none":
        if folder is not None and checkpoint.find(folder):
            raise Mistake(
                f"expected no checkpoints of an earlier run in {folder}, got {len(checkpoint.find(folder))}; "
                "add --resume auto to go on with it, or choose another --out"
            )
        return None
    if config.resume == "auto":
        if folder is None:
            raise Mistake("expected --out with --resume auto, got none; name the folder of the run")
        checkpoint.sweep(folder)
        return checkpoint.newest_good(folder, report)
    path = Path(config.resume)
    checkpoint.verify(path)
    return path


def settle_buckets(trainer: Trainer, shape: Shape, classes: int) -> None:
    """A pass for nothing, before the state of a checkpoint is loaded.

    DDP arranges gradients into buckets for its first pass and differently for all later ones, and sums of another
    arrangement round differently. A resumed run has its first pass here, so that its next step is like that of a run
    that was never interrupted; without this, results differ at 3 or more ranks.
    """
    if trainer.wrapped is not trainer.module:
        warm_up(trainer, shape, classes)


class Checkpoints:
    """Writes and reads the checkpoints of one run."""

    def __init__(self, trainer: Trainer, dataset: Dataset, loader: Loader) -> None:
        self.trainer, self.config, self.ctx = trainer, trainer.config, trainer.ctx
        self.dataset, self.loader = dataset, loader
        self.resumed: set[int] = set()
        self.identity = fingerprint(trainer.config, dataset, trainer.ctx)

    def save(self, epoch: Epoch) -> None:
        """Write a checkpoint of this step edge; nothing without --out. Every rank must call this."""
        if self.config.out is None:
            return
        progress = epoch.progress
        sums = self.ctx.gather(epoch.state())
        together = {
            "total": sum(part["total"] for part in sums),
            "samples": sum(part["samples"] for part in sums),
            "elapsed_s": max(part["elapsed_s"] for part in sums),
        }
        content = checkpoint.Content(
            shared=shared_state(self.trainer, progress) | {"meter": together},
            own=own_state(self.trainer, epoch.state()) | {"loader": self.loader.own_state()},
            info={"identity": self.identity, "samples": progress.samples, "epoch": progress.epoch},
        )
        best_epoch = best(progress.epochs)
        protect = self.resumed | (set() if best_epoch is None else {best_epoch["step"]})
        patient = self.ctx.patient
        checkpoint.write(
            self.config.out / FOLDER, progress.step, content, patient, keep=self.config.keep, protect=protect
        )
        patient.barrier()  # no rank may end, and take the launch with it, before rank 0 has committed

    def load(self, path: Path) -> tuple[Progress, dict[str, Any]]:
        """Put the trainer into a checkpoint's state -> how far the run was, and this rank's sums of the open epoch.

        Raises Mistake if the checkpoint is of another run. Every rank must call this.
        """
        manifest, shared, own = checkpoint.load(path, self.ctx.rank)
        check_same(manifest.info["identity"], self.identity)
        settle_buckets(self.trainer, self.dataset.shape, len(self.dataset.classes))
        self.resumed = {manifest.step}  # until this launch ends: what it came from must not go
        same_ranks = manifest.world_size == self.ctx.world_size
        progress = restore(self.trainer, shared, own if same_ranks else None)
        if same_ranks and own is not None:
            self.loader.load_own(own["loader"])
            return progress, own["meter"]
        # Other ranks than before: generators start anew from seed, step and rank, and rank 0 carries the sums.
        seed_generators(self.config.seed + 1_000_003 * (self.ctx.rank + 1) + 7_368_787 * progress.step)
        nothing = {"total": 0.0, "samples": 0, "elapsed_s": shared["meter"]["elapsed_s"]}
        return progress, shared["meter"] if self.ctx.is_main else nothing
