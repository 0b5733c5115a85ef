"""What a training run is: frozen dataclasses, checked when made. Imports no torch, so that errors are instant."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DEFAULT_GLOBAL_BATCH_SIZE = 128


class Mistake(ValueError):
    """Something that a person asked for cannot be: one sentence says what was expected, what was got and what to do."""


def require(condition: bool, expected: str, got: object, remedy: str) -> None:
    """Raise Mistake with what was expected, what was got and what to do, unless `condition` holds."""
    if not condition:
        raise Mistake(f"expected {expected}, got {got}; {remedy}")


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Where samples come from and how they are prepared."""

    data: str = "synthetic"
    """Data set: a file of ddp/datasets, see `ringmark list data`."""
    data_dir: Path | None = None
    """Folder of a data set that is read from disk."""
    download: bool = False
    """Let torchvision download the data set into --data-dir if it is not there."""
    image_size: int | None = None
    """Height and width of the samples in pixels; by default the model's own."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Decode images once, into memory shared by the ranks of a node, or at each reading; auto: once if they fit."""
    cache_gib: float = 8.0
    """What `--cache auto` may put into memory on each node, in GiB."""
    workers: int = 2
    """Loader processes per rank for images that are not held in memory."""
    augment: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    """Random shifts and horizontal flips of training images; auto: what suits the data set."""
    crop_padding: int | None = None
    """Pixels a random crop may shift an image; by default an eighth of its size."""

    def __post_init__(self) -> None:
        require(
            self.image_size is None or self.image_size >= 1,
            "--image-size of at least 1",
            self.image_size,
            "give pixels, such as 32",
        )
        require(self.cache_gib >= 0, "--cache-gib of at least 0", self.cache_gib, "give GiB, such as 8")
        require(self.workers >= 0, "--workers of at least 0", self.workers, "0 decodes in the rank itself")
        require(
            self.crop_padding is None or self.crop_padding >= 0,
            "--crop-padding of at least 0",
            self.crop_padding,
            "0 shifts nothing",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights are updated."""

    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "asgd"] = "sgd"
    """Update rule, with torch's own settings where no flag names them."""
    lr: float = 0.1
    """Peak learning rate; used as it is, unless --lr-scaling says otherwise."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Multiply --lr by global batch / --lr-base-batch, or by its square root."""
    lr_base_batch: int = 256
    """Samples of all ranks in a step for which --lr was chosen; matters with --lr-scaling only."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's form of sgd's momentum."""
    weight_decay: float = 5e-4
    """L2 penalty, or decoupled decay (adamw)."""
    decay_norm_and_bias: bool = True
    """Let --weight-decay act on every parameter; otherwise not on those of one dimension: biases, normalisation."""
    l1: float = 0.0
    """L1 penalty on every parameter: its sign times this is added to the gradient; the reported loss leaves it out."""
    schedule: Literal["linear", "cosine", "constant", "step", "multistep", "one-cycle"] = "cosine"
    """How the learning rate falls after the warm-up; linear, cosine and one-cycle end near zero."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises: linearly from zero; one-cycle: from a 25th of its peak."""
    lr_step: float = 1 / 3
    """Share of all steps between two drops of `--schedule step`."""
    lr_milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of all steps at which `--schedule multistep` drops."""
    lr_gamma: float = 0.1
    """What a drop of `--schedule step` or `multistep` multiplies the learning rate by."""
    label_smoothing: float = 0.0
    """Share of the target's probability spread over all classes, in training only."""

    def __post_init__(self) -> None:
        require(self.lr > 0 and math.isfinite(self.lr), "a positive, finite --lr", self.lr, "try 0.1")
        require(
            self.lr_base_batch >= 1, "--lr-base-batch of at least 1", self.lr_base_batch, "give samples, such as 256"
        )
        require(0 <= self.momentum < 1, "--momentum in [0, 1)", self.momentum, "try 0.9")
        require(
            self.weight_decay >= 0 and math.isfinite(self.weight_decay),
            "a finite --weight-decay of at least 0",
            self.weight_decay,
            "try 5e-4",
        )
        require(self.l1 >= 0 and math.isfinite(self.l1), "a finite --l1 of at least 0", self.l1, "0 is no penalty")
        require(0 <= self.warmup < 1, "--warmup in [0, 1), a share of all steps", self.warmup, "try 0.1")
        require(0 < self.lr_step < 1, "--lr-step in (0, 1), a share of all steps", self.lr_step, "try 0.3333")
        shares = self.lr_milestones
        require(
            bool(shares) and all(0 < share < 1 for share in shares) and list(shares) == sorted(set(shares)),
            "--lr-milestones that rise and lie in (0, 1), shares of all steps",
            ",".join(map(str, shares)) or "none",
            "try 0.5,0.75",
        )
        require(0 < self.lr_gamma <= 1, "--lr-gamma in (0, 1]", self.lr_gamma, "try 0.1")
        require(0 <= self.label_smoothing < 1, "--label-smoothing in [0, 1)", self.label_smoothing, "try 0.1")
        self._check_schedule()

    def _check_schedule(self) -> None:
        """Raise Mistake if the schedule and the warm-up contradict each other."""
        drops = {"step": ("--lr-step", self.lr_step), "multistep": ("--lr-milestones", self.lr_milestones[0])}
        if self.schedule in drops:
            flag, first = drops[self.schedule]
            require(
                first >= self.warmup,
                f"a first drop after the warm-up, which ends at {self.warmup} of the run",
                f"{flag} {first}",
                f"raise {flag} or lower --warmup",
            )
        require(
            self.schedule != "one-cycle" or self.warmup > 0,
            "--warmup above 0 with --schedule one-cycle",
            self.warmup,
            "try 0.3, or --schedule cosine",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train one model on one data set."""

    model: str = "resnet18-cifar"
    """Model: a name from `ringmark list models`, or path/to/file.py:factory."""
    strategy: str = "auto"
    """How ranks work together: a file of ddp/strategies; auto: ddp on several ranks, single on one."""
    sync_bn: bool = False
    """BatchNorm over the whole global batch instead of over each rank's share."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision by torch.amp; fp16 scales gradients."""
    channels_last: bool = False
    """Keep images and weights in NHWC order: faster for most convolutional networks, slower for some."""
    epochs: int = 1
    """Passes over the training set."""
    batch_size: int | None = None
    """Samples per rank in a step; instead of --global-batch-size."""
    global_batch_size: int | None = None
    """Samples of all ranks together in a step; 128 if neither size is given."""
    eval_batch_size: int = 256
    """Samples a rank evaluates at once; the result does not depend on the number of ranks."""
    accumulate: int = 1
    """Micro-batches that a rank cuts its batch into, to need less memory; the update stays the same."""
    drop_last: bool = False
    """Leave out the incomplete batch at the end of an epoch."""
    seed: int = 0
    """Seed of weights, sample order and augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: GPUs if this machine has them."""
    timeout_s: float = 120.0
    """Seconds after which a rank that waits for the others gives up."""
    log_every: int = 20
    """Steps between two readings of the loss; only these wait for the device."""
    out: Path | None = None
    """Folder for records.jsonl, checkpoints, TensorBoard events and model.pt; nothing is written without it."""
    checkpoint_every: int = 0
    """Steps between two checkpoints within an epoch; one is written after every epoch in any case."""
    keep: int = 2
    """Checkpoints kept, beside that of the best epoch."""
    resume: str = "none"
    """Go on from a checkpoint: auto takes the newest good one of --out, if there is one; or the path of one."""
    input: InputConfig = field(default_factory=InputConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for flag, value in (
            ("--epochs", self.epochs),
            ("--batch-size", self.batch_size),
            ("--global-batch-size", self.global_batch_size),
            ("--eval-batch-size", self.eval_batch_size),
            ("--log-every", self.log_every),
            ("--accumulate", self.accumulate),
            ("--keep", self.keep),
        ):
            require(value is None or value >= 1, f"{flag} of at least 1", value, "give a positive whole number")
        require(self.checkpoint_every >= 0, "--checkpoint-every of at least 0", self.checkpoint_every, "give steps")
        require(self.timeout_s > 0, "--timeout-s above 0", self.timeout_s, "give seconds, such as 120")
        require(
            self.batch_size is None or self.global_batch_size is None,
            "--batch-size or --global-batch-size",
            "both",
            "give one: samples per rank, or of all ranks together",
        )

    def global_batch(self, world_size: int) -> int:
        """Samples in a step of all ranks. Raises Mistake if the ranks cannot share them equally."""
        if self.batch_size is not None:
            return self.batch_size * world_size
        size = self.global_batch_size or DEFAULT_GLOBAL_BATCH_SIZE
        require(
            size % world_size == 0,
            f"a global batch that {world_size} ranks can share equally",
            f"--global-batch-size {size}",
            f"use {max(1, size // world_size) * world_size}, or --batch-size for the samples of each rank",
        )
        return size
