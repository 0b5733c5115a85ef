"""CartPole: balance a pole on a cart by pushing it left or right; an environment in the place of stored samples.

500 steps at most, a reward of 1 for each. Source: Barto, Sutton, Anderson 1983, as CartPole-v1 of gymnasium.
"""

import numpy as np

from ddp.environment import EnvironmentDataset, require_gymnasium
from ddp.input_config import InputConfig
from ddp.mistake import require
from ddp.source import Shape, Split, number_split

TRANSITIONS = 128_000
"""Transitions that an epoch learns from: 1,000 updates of 128, drawn from what the ranks remember."""
SCALES = (1.2, 1.0, 0.1, 1.0)
"""What counts as 1 of position, speed, angle and its speed: half of where an episode ends, and a brisk speed."""
EPISODES = 100
"""Episodes of an evaluation. Source: CartPole-v1 counts as solved at a mean return of 475 over 100."""


def count(config: InputConfig) -> int:
    """Transitions of an epoch. Raises Mistake without gymnasium, or for options of images."""
    require_gymnasium()
    require(config.image_size is None, "no --image-size for CartPole", config.image_size, "omit it")
    require(not config.folds, "no --folds for CartPole, which stores no samples", config.folds, "omit it")
    require(not config.balance, "no --balance for CartPole, which has no labels", "--balance", "omit it")
    return TRANSITIONS


def load(config: InputConfig, native: Shape, classes: int) -> EnvironmentDataset:
    """An environment of four numbers and two actions. The splits say how much of it is seen, and hold nothing."""

    def split(samples: int) -> Split:
        return number_split(np.empty((samples, 0)), np.zeros(samples, dtype=np.float32))

    count(config)
    return EnvironmentDataset(
        train=split(TRANSITIONS),
        test=split(EPISODES),
        shape=(4,),
        stored=(4,),
        classes=("left", "right"),
        mean=(0.0,) * 4,
        std=SCALES,
        flip=False,
        environment="CartPole-v1",
    )
