"""`ringmark judge`: what a GAN makes, seen by a classifier that was trained on real images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddp.mistake import require
from launch.argv import parse
from models import zoo

if TYPE_CHECKING:
    from torch import Tensor, nn

TOGETHER = 250
"""Images that are made and classified at once."""
GRID = 10
"""Images in a row of the picture, and rows of it."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Which generator is judged, and by whom.

    Both must have been trained on the same data in the same size: the generator's images are normalised as that data
    is, by the mean and the deviation that its weights hold.
    """

    generator: Path
    """Folder of a GAN's run, or its file of weights."""
    judge_weights: Path
    """Folder of the classifier's run, or its file of weights."""
    model: str = "dcgan-digits"
    """The GAN: a model with a part called generator."""
    judge_model: str = "lenet5"
    """The classifier."""
    image_size: int | None = None
    """Height and width of the images; by default the GAN's own."""
    count: int = 1000
    """Images that are made."""
    seed: int = 0
    """Seed of the noise that they are made of."""
    out: Path | None = None
    """Folder for samples.png, which shows the first hundred."""

    def __post_init__(self) -> None:
        require(self.count >= 1, "--count of at least 1", self.count, "try 1000")
        size = self.image_size
        require(size is None or size >= 1, "--image-size of at least 1", size, "try 32")


def _load(module: "nn.Module", path: Path) -> "nn.Module":
    """The model with the weights of a run, in evaluation mode. Raises ModelMistake if they are not its own."""
    from models.pretrained import load_weights

    load_weights(module, path / "model.pt" if path.is_dir() else path, new_head=False)
    return module.eval()


def judged(generator: "nn.Module", classifier: "nn.Module", count: int, seed: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Make images and classify them -> pixels in [0, 1] [count, C, H, W], class and probability of each, [count].

    The probability is the highest of the classifier's softmax. Each image is a function of the seed and its number.
    """
    import torch

    from ddp.noise import Use, normal

    size = generator.noise_size
    assert isinstance(size, int)
    found = []
    with torch.no_grad():
        for numbers in torch.arange(count).split(TOGETHER):
            images = generator(normal(seed, 0, numbers, size, Use.SAMPLES))
            confidence, chosen = classifier(images).softmax(dim=1).max(dim=1)
            pixels = images * generator.get_buffer("std") + generator.get_buffer("mean")
            found.append((pixels, chosen, confidence))
    pixels, chosen, confidence = (torch.cat(parts) for parts in zip(*found, strict=True))
    return pixels, chosen, confidence


def judge(argv: Sequence[str]) -> int:
    """Make images, print which classes the classifier sees in them and how sure it is, and draw some -> 0."""
    description = "Make images by a GAN and classify them by a classifier trained on the real ones."
    options = parse(JudgeOptions, argv, prog="ringmark judge", description=description)
    for name in (options.model, options.judge_model):
        zoo.check_name(name)

    import torch

    gan, judges = zoo.find(options.model), zoo.find(options.judge_model)
    channels, *sides = gan.shape
    shape = (channels, *(sides if options.image_size is None else [options.image_size] * 2))
    module = gan.build(shape, gan.classes)
    parts = dict(module.named_children())
    require("generator" in parts, "a model with a part called generator", options.model, "choose a GAN")
    _load(module, options.generator)
    classifier, classes = _load(judges.build(shape, judges.classes), options.judge_weights), judges.classes
    pixels, chosen, confidence = judged(parts["generator"], classifier, options.count, options.seed)
    counts = torch.bincount(chosen, minlength=classes).tolist()
    present = sum(count > 0 for count in counts)
    print(f"{options.count} images by {options.model}, seed {options.seed}, as {options.judge_model} sees them:")
    print("  ".join(f"class {number}: {count}" for number, count in enumerate(counts)))
    print(f"{present} of {classes} classes present, mean confidence {float(confidence.double().mean()):.4f}")
    if options.out is not None:
        print(f"samples: {_draw(pixels, options.out)}")
    return 0


def _draw(pixels: "Tensor", folder: Path) -> Path:
    """Write the first images side by side -> the file."""
    from torchvision.utils import save_image

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.png"
    save_image(pixels[: GRID * GRID].clamp(0, 1), path, nrow=GRID)
    return path
