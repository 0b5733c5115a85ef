"""Environments to act in, from gymnasium, which is optional. Imports no torch, and gymnasium only when it is used."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from ddp.mistake import require
from ddp.source import Dataset


@dataclass(frozen=True, kw_only=True)
class EnvironmentDataset(Dataset):
    """An environment in the place of stored samples.

    The length of `train` is how many transitions an epoch learns from, that of `test` how many episodes an evaluation
    takes; they hold nothing. `shape` is that of an observation, `classes` are the actions. `mean` and `std`, along the
    first dimension of an observation, normalise it.
    """

    environment: str
    """Name of an environment of gymnasium."""


def require_gymnasium() -> None:
    """Raise Mistake if gymnasium is not installed."""
    require(
        find_spec("gymnasium") is not None,
        "the package gymnasium, which runs environments",
        "none",
        'run pip install "gymnasium>=1.0", or pip install -e ".[control]" in the checkout',
    )


class Episode:
    """One episode of an environment: a function of its seed and of the actions that are taken in it."""

    def __init__(self, dataset: EnvironmentDataset, seed: int) -> None:
        import gymnasium

        ones = (1,) * (len(dataset.shape) - 1)
        self._mean, self._std = (np.array(each).reshape(-1, *ones) for each in (dataset.mean, dataset.std))
        self._environment = gymnasium.make(dataset.environment, disable_env_checker=True)
        self.observation = self._normalised(self._environment.reset(seed=seed)[0])
        """The latest, float32 [*shape], normalised."""
        self.actions: list[int] = []
        self.total = 0.0
        """Sum of the rewards so far."""
        self.over = False
        """Whether it has ended, by what happened in it or because its time is up."""

    def _normalised(self, observation: np.ndarray) -> np.ndarray:
        return ((observation - self._mean) / self._std).astype(np.float32)

    def step(self, action: int) -> tuple[float, bool]:
        """Act once -> reward, and whether the episode ended by what happened in it.

        One whose time is up has ended, too, but not so: what would have come next is still worth something.
        """
        observation, reward, terminated, truncated, _ = self._environment.step(action)
        self.observation, self.over = self._normalised(observation), terminated or truncated
        self.actions.append(action)
        self.total += float(reward)
        return float(reward), bool(terminated)
