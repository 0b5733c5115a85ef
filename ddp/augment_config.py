"""Options of the random changes to training images. Imports no torch."""

import math
from dataclasses import dataclass

from ddp.mistake import require


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to training images at random, beside the shifts and flips of --augment; 0 leaves a change out."""

    resized_crop: tuple[float, ...] = ()
    """Smallest and largest share of an image's area that a random crop, scaled back up, keeps, such as 0.08,1.

    It takes the place of the random shift."""
    rotate: float = 0.0
    """Largest angle in degrees by which an image is turned, either way; the corners become black."""
    brightness: float = 0.0
    """Brightness is multiplied by a factor in [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Contrast is multiplied by a factor in [1 - x, 1 + x]."""
    saturation: float = 0.0
    """Saturation is multiplied by a factor in [1 - x, 1 + x]; does nothing to images without colours."""
    hue: float = 0.0
    """Hue is turned by up to this share of the colour circle, at most 0.5; does nothing to images without colours."""
    greyscale: float = 0.0
    """Probability that an image loses its colours."""
    cutout: int = 0
    """Side in pixels of a square that is blanked in each image."""
    mixup: float = 0.0
    """Alpha of mixup: an image and its label are blended with another's by a share drawn from Beta(alpha, alpha)."""
    cutmix: float = 0.0
    """Alpha of CutMix: a rectangle is replaced by another image's, whose share of the label is that of the area."""

    def __post_init__(self) -> None:
        shares = self.resized_crop
        require(
            not shares or (len(shares) == 2 and 0 < shares[0] < shares[1] <= 1),
            "two rising shares in (0, 1] as --resized-crop",
            ",".join(map(str, shares)),
            "try 0.08,1",
        )
        require(0 <= self.rotate <= 180, "--rotate in [0, 180] degrees", self.rotate, "try 15")
        for flag, value, remedy in (
            ("--brightness", self.brightness, "try 0.4"),
            ("--contrast", self.contrast, "try 0.4"),
            ("--saturation", self.saturation, "try 0.4"),
            ("--mixup", self.mixup, "try 0.2"),
            ("--cutmix", self.cutmix, "try 1"),
        ):
            require(value >= 0 and math.isfinite(value), f"a finite {flag} of at least 0", value, remedy)
        require(0 <= self.hue <= 0.5, "--hue in [0, 0.5], a share of the colour circle", self.hue, "try 0.1")
        require(0 <= self.greyscale <= 1, "--greyscale in [0, 1], a probability", self.greyscale, "try 0.2")
        require(self.cutout >= 0, "--cutout of at least 0", self.cutout, "give pixels, such as 8")
        require(
            not (self.mixup and self.cutmix),
            "--mixup or --cutmix",
            f"--mixup {self.mixup} and --cutmix {self.cutmix}",
            "leave one of them 0",
        )

    @property
    def recolours(self) -> bool:
        """Whether any change of colours is asked for."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.greyscale))
