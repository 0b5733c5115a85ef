"""Batches of what an agent has gone through: it acts, remembers, and draws from what it remembers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.environment import EnvironmentDataset, Episode
from ddp.loader import Batch
from ddp.replay import Replay, pack
from ddp.sampler import TrainBatches

EPISODE, EXPLORATION, REPLAY, EVALUATION = range(4)
"""What random numbers are for: those of different uses are independent."""
TOGETHER = 10
"""Episodes of an evaluation whose observations go through the model at once."""


def seed_of(seed: int, use: int, rank: int, number: int) -> int:
    """A seed for one use, of one rank's episode or update of that number: 32 bits."""
    return int(np.random.SeedSequence((seed, use, rank, number)).generate_state(1)[0])


@torch.no_grad()
def greedy(module: nn.Module, observations: np.ndarray) -> list[int]:
    """The action of the highest value for each observation, [N, *shape] -> N actions."""
    device = next(module.parameters()).device
    values = module(torch.from_numpy(observations).to(device, torch.get_default_dtype()))
    chosen: list[int] = values.argmax(1).tolist()
    return chosen


class Experience:
    """One rank's transitions: stands where other tasks have a Loader.

    The rank acts in an environment of its own, so the number of ranks decides what is gone through. Episodes, actions
    at random and draws from the memory are functions of seed, rank and number alone; with the memory and the open
    episode's actions in a checkpoint, a resumed run goes through the same; with other ranks it begins to remember anew.
    """

    def __init__(self, config: TrainConfig, dataset: EnvironmentDataset, ctx: DistContext, module: nn.Module) -> None:
        self.config, self.dataset, self.module = config, dataset, module
        self.rank, self.device = ctx.rank, ctx.device
        self.shares = TrainBatches(
            samples=len(dataset.train),
            global_batch=config.global_batch(ctx.world_size),
            rank=ctx.rank,
            world_size=ctx.world_size,
            seed=config.seed,
            drop_last=config.drop_last,
        )
        self.updates_per_epoch = len(self.shares)
        self.replay = Replay(config.control.replay_size, dataset.shape)
        self._begin(0)

    def _begin(self, number: int) -> None:
        """Open this rank's episode of that number, counted from 0."""
        seed, rank = self.config.seed, self.rank
        self.number = number
        self.episode = Episode(self.dataset, seed_of(seed, EPISODE, rank, number))
        self._random = np.random.default_rng(seed_of(seed, EXPLORATION, rank, number))

    def _draw(self) -> tuple[float, int]:
        """A number in [0, 1) and an action, both uniform; both are drawn in every step, needed or not."""
        return self._random.random(), int(self._random.integers(len(self.dataset.classes)))

    def _act(self, epsilon: float) -> None:
        """Take one step and remember it; with probability `epsilon` at random."""
        share, action = self._draw()
        before = self.episode.observation
        if share >= epsilon:
            (action,) = greedy(self.module, before[None])
        reward, terminated = self.episode.step(action)
        after = torch.from_numpy(self.episode.observation)[None]
        action_taken, gained, ended = (torch.tensor([number]) for number in (action, reward, terminated))
        self.replay.add(torch.from_numpy(before), pack(action_taken, gained, ended, after)[0])
        if self.episode.over:
            self._begin(self.number + 1)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the epoch that is iterated next, without its first `done` transitions."""
        self.shares.set_epoch(epoch, done)

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        """Act, then draw this rank's share of a step from the memory."""
        control, seed = self.config.control, self.config.seed
        updates = self.config.epochs * self.updates_per_epoch
        first = max(1, self.shares.epoch) * self.updates_per_epoch - len(self.shares)
        if not len(self.replay):
            for _ in range(control.learning_starts):
                self._act(1.0 if first == 0 else control.epsilon(first / updates))
        for number, share in enumerate(self.shares, start=first):
            for _ in range(control.env_steps_per_update):
                self._act(control.epsilon(number / updates))
            generator = torch.Generator().manual_seed(seed_of(seed, REPLAY, self.rank, number))
            observations, followed = self.replay.sample(len(share.indices), generator)
            yield Batch(observations.to(self.device), followed.to(self.device), share.global_count, share.indices)

    def own_state(self) -> dict[str, Any]:
        """For a checkpoint: the memory, and the open episode as its number and its actions."""
        return {"replay": self.replay.state(), "episode": self.number, "actions": list(self.episode.actions)}

    def load_own(self, state: dict[str, Any]) -> None:
        """Undo `own_state`: the open episode is gone through again."""
        self.replay.load(state["replay"])
        self._begin(state["episode"])
        for action in state["actions"]:
            self._draw()
            self.episode.step(action)


@dataclass(frozen=True)
class Episodes:
    """What an evaluation goes through: stands where other tasks have a Loader of the test set."""

    dataset: EnvironmentDataset

    def returns(self, module: nn.Module, seed: int, rank: int, world_size: int) -> list[float]:
        """Sum of rewards of each of this rank's greedy episodes.

        Episodes go in groups that are the same at any number of ranks; those that are over stay in their group, so that
        each pass of the model is the same computation, to the last bit.
        """
        found = []
        for start in range(rank * TOGETHER, len(self.dataset.test), world_size * TOGETHER):
            numbers = range(start, min(start + TOGETHER, len(self.dataset.test)))
            group = [Episode(self.dataset, seed_of(seed, EVALUATION, 0, number)) for number in numbers]
            while not all(episode.over for episode in group):
                actions = greedy(module, np.stack([episode.observation for episode in group]))
                for episode, action in zip(group, actions, strict=True):
                    if not episode.over:
                        episode.step(action)
            found += [episode.total for episode in group]
        return found
