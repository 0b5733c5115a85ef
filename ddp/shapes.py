"""Pictures of coloured shapes on noisy grounds, with a mask and a box of each shape; functions of (split, index, size).

A shape's colour says nothing of its class, so a model has to look at its outline. Imports numpy only.
"""

import math
from dataclasses import dataclass

import numpy as np

CLASSES = ("circle", "square", "triangle", "ring")
"""What is drawn; a position here is an instance's class number."""
SMALLEST_SIZE = 16
"""Side of a picture in pixels below which shapes can no longer be told apart."""
MOST_SHAPES = 6
"""Shapes of one picture at most; at least one."""
CLEAR = 0.85
"""Smallest distance of two shapes, as a share of the sum of their radii: they may overlap, but little."""
TRIES = 8
"""Places tried for a shape; it is left out if it fits in none of them."""

CIRCLE, SQUARE, TRIANGLE, RING = range(4)
SMALLEST, LARGEST = 0.11, 0.22
"""Radius of the circle around a shape, as a share of the picture's side."""
NOISE = 24
"""Largest deviation of a pixel's channel from its colour, of 255."""
HOLE = 0.55
"""Radius of a ring's hole, as a share of the ring's."""


@dataclass(frozen=True)
class Instance:
    """One shape of a picture: class number (position in CLASSES), its visible pixels, and the box around these."""

    number: int
    mask: np.ndarray
    """bool [height, width]; the masks of a picture do not overlap."""
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 in pixels; x2 and y2 are just outside."""


def _outline(number: int, x: np.ndarray, y: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Pixels of a shape around (0, 0), bool [height, width], from their coordinates x [1, width] and y [height, 1]."""
    if number in (CIRCLE, RING):
        square = x * x + y * y
        inside = square <= radius * radius
        return inside & (square > (HOLE * radius) ** 2) if number == RING else inside
    sides = 4 if number == SQUARE else 3
    inner = radius * math.cos(math.pi / sides)
    inside = np.ones((y.size, x.size), dtype=bool)
    for side in range(sides):
        direction = angle + 2 * math.pi * side / sides
        inside &= x * math.cos(direction) + y * math.sin(direction) <= inner
    return inside


def _placed(generator: np.random.Generator, size: int) -> list[tuple[int, np.ndarray]]:
    """Class numbers and visible pixels of a picture's shapes, from the back to the front."""
    grid = np.arange(size, dtype=np.float32) + np.float32(0.5)
    placed: list[tuple[int, np.ndarray]] = []
    circles = np.zeros((0, 3))  # x, y, radius of the circle around each shape
    for number in generator.integers(len(CLASSES), size=generator.integers(1, MOST_SHAPES + 1)):
        radius = size * generator.uniform(SMALLEST, LARGEST)
        angle = generator.uniform(0, 2 * math.pi)
        places = generator.uniform(radius, size - radius, (TRIES, 2))
        distances = np.hypot(*(places[:, None] - circles[:, :2]).transpose(2, 0, 1))
        clear = np.flatnonzero((distances >= CLEAR * (circles[:, 2] + radius)).all(axis=1))
        if len(clear):
            x, y = places[clear[0]]
            mask = _outline(int(number), (grid - x)[None], (grid - y)[:, None], radius, angle)
            placed = [(other, seen & ~mask) for other, seen in placed] + [(int(number), mask)]
            circles = np.vstack([circles, (x, y, radius)])
    return placed


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def draw(split: int, index: int, size: int = 64) -> tuple[np.ndarray, list[Instance]]:
    """The picture `index` of a split, uint8 [3, size, size], and its 1 to 6 shapes; the same for the same numbers."""
    generator = np.random.default_rng((split, index))
    ground = generator.uniform(60, 196, (3, 1, 1)).astype(np.float32)
    slope = generator.uniform(-40, 40, (2, 3, 1, 1)).astype(np.float32)
    step = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    picture = ground + slope[0] * step + slope[1] * step[:, None]
    instances = []
    for number, mask in _placed(generator, size):
        # At least 60 away from the ground's mean in each channel: no shape is lost in the noise.
        away = generator.uniform(60, 110, ground.shape) * generator.choice((-1, 1), ground.shape)
        np.copyto(picture, ground + away, where=mask, casting="same_kind")
        instances.append(Instance(number, mask, _box(mask)))
    picture += generator.integers(-NOISE, NOISE + 1, picture.shape, dtype=np.int8)
    return picture.clip(0, 255).astype(np.uint8), instances
