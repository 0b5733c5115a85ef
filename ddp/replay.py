"""What an agent remembers: the latest transitions, in a ring, on the CPU."""

from typing import Any

import torch
from torch import Tensor

from ddp.source import Shape


def pack(action: Tensor, reward: Tensor, terminated: Tensor, after: Tensor) -> Tensor:
    """What followed on N observations, in one tensor: [N], [N], [N], [N, *shape] -> float [N, 3 + values]."""
    firsts = torch.stack([each.to(after.dtype) for each in (action, reward, terminated)], dim=1)
    return torch.cat([firsts, after.flatten(1)], dim=1)


def unpack(targets: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Undo `pack` -> action int64 [N], reward [N], terminated [N], observation after [N, *shape]."""
    return targets[:, 0].long(), targets[:, 1], targets[:, 2], targets[:, 3:].unflatten(1, shape)


class Replay:
    """The latest `size` transitions of one rank: an observation, and what followed on it, packed."""

    def __init__(self, size: int, shape: Shape) -> None:
        self.size = size
        self.added = 0
        """Transitions since the run began."""
        self.observations = torch.zeros(size, *shape)
        self.followed = torch.zeros(size, 3 + self.observations[0].numel())

    def __len__(self) -> int:
        return min(self.added, self.size)

    def add(self, observation: Tensor, followed: Tensor) -> None:
        """Remember one transition, in the place of the oldest if there is no other. [*shape], [3 + values]."""
        place = self.added % self.size
        self.observations[place], self.followed[place] = observation, followed
        self.added += 1

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Transitions drawn with replacement -> observations [count, *shape], what followed [count, 3 + values]."""
        rows = torch.randint(len(self), (count,), generator=generator)
        return self.observations[rows], self.followed[rows]

    def state(self) -> dict[str, Any]:
        """For a checkpoint: what is remembered, and how many there ever were."""
        kept = len(self)
        return {
            "added": self.added,
            "observations": self.observations[:kept].clone(),
            "followed": self.followed[:kept].clone(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Undo `state`, of a replay of the same size."""
        self.added = state["added"]
        self.observations[: len(self)] = state["observations"]
        self.followed[: len(self)] = state["followed"]
