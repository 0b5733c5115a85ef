"""Every model in turn through the real training loop: that it trains, its speed, its memory, its arithmetic.

Models are measured one after another, each freed before the next. A model that fails is recorded with the reason, and
the next one goes on.
"""

import ast
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.cell import key_of
from bench.options import BenchOptions
from ddp import discover
from ddp.mistake import require
from models import zoo

if TYPE_CHECKING:
    from ddp.context import DistContext

CLASSIFICATION = "classification"
FAMILIES = (
    *("alexnet", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
    *("googlenet", "inception_v3", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "densenet121", "mobilenet_v2", "mobilenet_v3_small"),
    *("mobilenet_v3_large", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "efficientnet_b0"),
    *("regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "convnext_base", "vit_b_16", "swin_t", "swin_b"),
)
"""torchvision's classifiers that are measured and shown beside ringmark's own models."""


@dataclass(frozen=True, kw_only=True)
class ModelCell:
    """One model, trained for a few steps."""

    model: str
    task: str
    ranks: int
    batch_per_rank: int
    """Samples per rank in a step."""
    image_size: int | None = None
    """Height and width that larger images are made smaller to; None: the model's own."""
    sync_bn: bool = True
    amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = False
    compile: Literal["off", "inside", "outside"] = "off"

    @property
    def global_batch(self) -> int:
        """Samples of all ranks together in a step."""
        return self.ranks * self.batch_per_rank

    @property
    def key(self) -> str:
        """What stands for this cell in records."""
        return key_of(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Train every model for a few steps and measure it."""

    models: tuple[str, ...] = ()
    """Names; by default all of ringmark's own and torchvision's best-known classifiers."""
    task: str = ""
    """Only models for this task, such as segmentation."""
    ranks: int = 2
    """Processes."""
    batch_size: int = 2
    """Samples per rank in a step."""
    image_size: int | None = None
    """Make the images of models for larger ones this high and wide, to need less time; not all models can."""
    sync_bn: bool = True
    """BatchNorm over the whole global batch."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision by torch.amp."""
    channels_last: bool = False
    """Keep images and weights in NHWC order."""
    compile: Literal["off", "inside", "outside"] = "off"
    """torch.compile: of the model inside its wrapper, or of the wrapper (DDP) with the model in it."""
    rounds: int = 3
    """Timed blocks of each model."""
    block_s: float = 1.0
    """Seconds, about, of a block; it has at least two steps."""
    warmup_steps: int = 3
    """Steps before the first measured one; at least 3, since DDP rearranges its buckets after the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.models:
            zoo.check_name(name)
        require(self.ranks >= 1, "--ranks of at least 1", self.ranks, "try 2")
        require(self.batch_size >= 1, "--batch-size of at least 1", self.batch_size, "try 2")
        require(
            self.ranks * self.batch_size >= 2 and (self.sync_bn or self.batch_size >= 2),
            "at least 2 samples for each BatchNorm",
            f"--ranks {self.ranks} --batch-size {self.batch_size}",
            "use --batch-size 2",
        )
        size = self.image_size
        require(size is None or size >= 1, "--image-size of at least 1", size, "try 64")
        tasks = discover.names("ddp.tasks")
        if self.task and self.task not in tasks:
            raise discover.unknown("task", self.task, tasks, "choose one of them")


def world_size(options: Options) -> int:
    """Processes to start."""
    return options.ranks


@cache
def _tasks(path: Path) -> dict[str, str]:
    """Function -> its task, for the functions of a file that are marked @model(...). Imports nothing."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
            for word in mark.keywords if isinstance(mark, ast.Call) else []:
                if word.arg == "task" and isinstance(word.value, ast.Constant) and isinstance(node, ast.FunctionDef):
                    found[node.name] = str(word.value.value)
    return found


def task_name(model: str) -> str:
    """What a model is for, read from source text, so that listing models imports no torch."""
    path = zoo.own_names().get(model)
    return CLASSIFICATION if path is None else _tasks(path).get(model.replace("-", "_"), CLASSIFICATION)


def cells(options: Options) -> list[ModelCell]:
    """One per model, by task and name."""
    named = options.models or (*zoo.own_names(), *FAMILIES)
    wanted = sorted((task_name(model), model) for model in dict.fromkeys(named))
    return [
        ModelCell(
            model=model,
            task=task,
            ranks=options.ranks,
            batch_per_rank=options.batch_size,
            image_size=options.image_size,
            sync_bn=options.sync_bn,
            amp=options.amp,
            channels_last=options.channels_last,
            compile=options.compile,
        )
        for task, model in wanted
        if options.task in ("", task)
    ]


def measure(options: Options, wanted: list[ModelCell], ctx: "DistContext", environment: dict[str, Any]) -> None:
    """Measure the wanted models one after another; rank 0 appends their records. Every rank must call this."""
    from bench.model_cells import measure_one_by_one

    measure_one_by_one(options, wanted, ctx, environment)
