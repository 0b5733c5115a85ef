"""What a training run is: frozen dataclasses, checked when made. Imports no torch, so that errors are instant."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ddp.augment_config import AugmentConfig
from ddp.control_config import ControlConfig
from ddp.initial_config import InitialConfig
from ddp.input_config import InputConfig
from ddp.mistake import require
from ddp.optim_config import OptimConfig
from ddp.parallel_config import ParallelConfig
from ddp.segmentation_config import SegmentationConfig

DEFAULT_GLOBAL_BATCH_SIZE = 128


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
    tf32: bool = False
    """Let GPUs round the factors of float32 products to 10 bits of mantissa: faster, and less exact."""
    compile: Literal["off", "inside", "outside"] = "off"
    """torch.compile: of the model inside its wrapper, or of the wrapper (DDP) with the model in it."""
    compile_backend: str = "inductor"
    """What --compile compiles with: a name from torch.compiler.list_backends()."""
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
    stop_after: int = 0
    """Stop with a checkpoint after so many steps of this launch, as a signal would; 0: train to the end."""
    resume: str = "none"
    """Go on from a checkpoint: auto takes the newest good one of --out, if there is one; or the path of one."""
    patience: int = 0
    """Stop after so many epochs without a better score on the test set, such as accuracy; 0 never does."""
    min_delta: float = 0.0
    """What counts as better with --patience: a score higher by more than this, such as 0.001 of accuracy."""
    check_every: int = 0
    """Steps between two comparisons of all state between the ranks; 0 never compares."""
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    initial: InitialConfig = field(default_factory=InitialConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    control: ControlConfig = field(default_factory=ControlConfig)

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
        for flag, value in (
            ("--checkpoint-every", self.checkpoint_every),
            ("--check-every", self.check_every),
            ("--patience", self.patience),
            ("--stop-after", self.stop_after),
        ):
            require(value >= 0, f"{flag} of at least 0", value, "give a whole number; 0 turns it off")
        require(0 <= self.min_delta < 1, "--min-delta in [0, 1)", self.min_delta, "try 0.001")
        require(self.timeout_s > 0, "--timeout-s above 0", self.timeout_s, "give seconds, such as 120")
        require(
            self.batch_size is None or self.global_batch_size is None,
            "--batch-size or --global-batch-size",
            "both",
            "give one: samples per rank, or of all ranks together",
        )

    @property
    def equal_buffers(self) -> bool:
        """Whether BatchNorm's statistics are the same on every rank at every step."""
        return self.sync_bn and self.parallel.sync_bn_scope == "world"

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
