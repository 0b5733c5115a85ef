"""Control: a model learns what actions are worth, and acts by it. Double DQN."""

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from ddp.acting import Episodes, Experience
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.environment import EnvironmentDataset
from ddp.loader import Batch, Loader
from ddp.mistake import require
from ddp.replay import pack, unpack
from ddp.source import Dataset, Shape
from ddp.task import Outcome, Task

if TYPE_CHECKING:
    from ddp.trainer import Trainer


class Control(Task):
    """Observations [N, ...] against what followed on them (ddp/replay.py); the score is the mean return of episodes.

    The model's children are `online`, which it is when it is called, and `target`, which is not trained: a copy of
    `online`, made anew every --target-every updates. Source: Mnih et al. 2015; van Hasselt, Guez, Silver, "Deep
    reinforcement learning with double Q-learning", 2016.
    """

    metric = "return"

    def check(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise Mistake unless the data is an environment, or for a strategy that shards the model."""
        require(
            isinstance(dataset, EnvironmentDataset),
            "an environment for a model that acts",
            f"--data {config.input.data}",
            "use --data cartpole, or another model",
        )
        require(
            config.strategy != "fsdp2",
            "a whole model on every rank, since each acts by itself",
            "--strategy fsdp2",
            "use --strategy ddp",
        )

    def make_loaders(
        self, config: TrainConfig, dataset: Dataset, ctx: DistContext, module: nn.Module
    ) -> tuple[Loader, Loader]:
        """What this rank goes through, and the episodes of an evaluation. Raises Mistake without a target."""
        assert isinstance(dataset, EnvironmentDataset)  # by `check`
        parts = [name for name, _ in module.named_children()]
        require(
            {"online", "target"} <= set(parts),
            "a model with the parts online and target",
            ", ".join(parts) or "none",
            "choose a deep Q-network, such as --model dqn-mlp",
        )
        experience = Experience(config, dataset, ctx, module)
        # what a run asks of its loaders, these have
        return cast("Loader", experience), cast("Loader", Episodes(dataset))

    def prepare(self, trainer: "Trainer", batch: Batch) -> Batch:
        """Before the first update and every --target-every later ones, make the target what the online network is.

        The schedule counts the updates, alike on all ranks, and a checkpoint holds it.
        """
        if trainer.scheduler.last_epoch % trainer.config.control.target_every == 0:
            online, target = (trainer.module.get_submodule(name) for name in ("online", "target"))
            target.load_state_dict(online.state_dict())
        return batch

    def losses(self, trainer: "Trainer", batch: Batch) -> Tensor:
        """Huber loss of each transition's value: the online network chooses the next action, the target values it.

        Nothing follows where an episode was terminated; where its time was up, something would have followed.
        """
        module, gamma = trainer.module, trainer.config.control.gamma
        action, reward, terminated, after = unpack(batch.targets, tuple(batch.inputs.shape[1:]))
        values = trainer.forward(batch.inputs).gather(1, action[:, None])[:, 0]
        with torch.no_grad():
            best = module(after).argmax(1, keepdim=True)
            future = module.get_submodule("target")(after).gather(1, best)[:, 0]
            goal = reward + gamma * (1 - terminated) * future
        return smooth_l1_loss(values.to(goal.dtype), goal, reduction="none")

    def output_shape(self, shape: Shape, classes: int) -> tuple[int, ...]:
        """One value for each action."""
        return (classes,)

    def random_batch(
        self, shape: Shape, classes: int, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normal observations and rewards, uniform actions, a tenth of the transitions terminated."""
        before, after = (torch.randn(samples, *shape, generator=generator) for _ in range(2))
        action = torch.randint(classes, (samples,), generator=generator)
        reward = torch.randn(samples, generator=generator)
        terminated = torch.rand(samples, generator=generator) < 0.1
        return before, pack(action, reward, terminated, after), None

    def evaluate(self, trainer: "Trainer", loader: Loader) -> Outcome:
        """Mean return of greedy episodes that depend on the seed only; equal to the bit at any number of ranks.

        Raises RuntimeError if an episode was lost or counted twice.
        """
        ctx, module = trainer.ctx, trainer.module
        episodes = cast("Episodes", loader)
        module.eval()
        parts = ctx.gather(episodes.returns(module, trainer.config.seed, ctx.rank, ctx.world_size))
        returns = [each for part in parts for each in part]
        if len(returns) != len(episodes.dataset.test):
            raise RuntimeError(f"expected {len(episodes.dataset.test)} episodes, counted {len(returns)}")
        mean = math.fsum(returns) / len(returns)
        return Outcome(
            score=mean,
            numbers={"test_return": mean, "test_lowest_return": min(returns), "test_samples": len(returns)},
            text=f"test return {mean:.2f}, at least {min(returns):g}",
            curves={"return": mean, "lowest_return": min(returns)},
        )


TASK = Control()
