"""Images per second of the input path alone: ringmark's against torchvision's ImageFolder and DataLoader.

Every pipeline gives the same thing: batches of randomly cropped, randomly flipped, normalised float images of a folder.
They take turns in one process, all of them on the CPU, also on a machine with GPUs; loader processes are started before
the first measured block and stay alive, and what they make while others are timed is thrown away.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cell import key_of
from bench.options import BenchOptions
from ddp.datasets import imagefolder
from ddp.input_config import InputConfig
from ddp.mistake import require

if TYPE_CHECKING:
    from ddp.context import DistContext

PIPELINES = ("ringmark", "imagefolder, 0 workers", "imagefolder, 2 workers")


@dataclass(frozen=True, kw_only=True)
class LoaderCell:
    """One input pipeline."""

    pipeline: str
    batch_size: int
    image_size: int

    @property
    def key(self) -> str:
        """What stands for this cell in records."""
        return key_of(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions):
    """Compare input pipelines on a folder of images."""

    data_dir: Path | None = None
    """Folder with train/CLASS/*.jpg and val/CLASS/*.jpg (or test)."""
    batch_size: int = 128
    """Images in a batch."""
    image_size: int = 32
    """Height and width of the images in pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.device != "cuda", "--device auto or cpu, where all pipelines make their batches", "cuda", "omit it"
        )
        require(self.batch_size >= 1, "--batch-size of at least 1", self.batch_size, "try 128")
        images = imagefolder.count(InputConfig(data="imagefolder", data_dir=self.data_dir))
        require(
            images >= self.batch_size, f"at least one batch of {self.batch_size} images", images, "use a smaller one"
        )


def world_size(options: Options) -> int:
    """Processes to start."""
    return 1


def cells(options: Options) -> list[LoaderCell]:
    """One per pipeline."""
    return [
        LoaderCell(pipeline=name, batch_size=options.batch_size, image_size=options.image_size) for name in PIPELINES
    ]


def measure(options: Options, wanted: list[LoaderCell], ctx: "DistContext", environment: dict[str, Any]) -> None:
    """Measure the wanted pipelines in turn and append their records."""
    from bench.loader_arms import measure_pipelines

    measure_pipelines(options, wanted, ctx, environment)
