"""Control: the targets, what a rank goes through and how it is resumed, and returns that do not depend on the ranks."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddp.acting import Episodes, Experience
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.control_config import ControlConfig
from ddp.datasets import cartpole
from ddp.environment import EnvironmentDataset, Episode
from ddp.fit import fit
from ddp.input_config import InputConfig
from ddp.loader import Batch
from ddp.mistake import Mistake
from ddp.optim_config import OptimConfig
from ddp.progress import Silent
from ddp.replay import Replay, pack, unpack
from ddp.tasks.control import TASK
from models.dqn import Dqn
from tests.generative_runs import images, largest_difference, outcome, steps, trainer_for
from tests.ranks import run_ranks

CONTROL = ControlConfig(learning_starts=20, replay_size=60, target_every=3)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def agent() -> nn.Module:
    return Dqn(network(), network())


def pole(transitions: int = 40, episodes: int = 25) -> EnvironmentDataset:
    """CartPole, with an epoch of few transitions and an evaluation of few episodes."""
    dataset = cartpole.load(InputConfig(data="cartpole"), (4,), 2)
    sizes = {"train": transitions, "test": episodes}
    return replace(dataset, **{
        name: replace(getattr(dataset, name), labels=np.zeros(size, dtype=np.float32), inputs=np.empty((size, 0)))
        for name, size in sizes.items()
    })  # fmt: skip


def test_ranks_train_what_one_process_trains_on_all_transitions() -> None:
    (expected,) = steps(1, TASK, agent, (4,), control=CONTROL)
    gradients = {name.split()[2] for name in expected if name.startswith("gradient")}
    assert gradients == {f"online.{name}" for name, _ in network().named_parameters()}
    for ranks in (2, 3):
        for found in steps(ranks, TASK, agent, (4,), control=CONTROL):
            assert largest_difference(found, expected) < 1e-10


def test_the_loss_is_hubers_of_the_double_q_target() -> None:
    """Nothing follows a transition that was terminated; the online network chooses, the target network values."""

    def work(ctx: DistContext) -> None:
        trainer = trainer_for(ctx, TASK, agent, control=ControlConfig(gamma=0.9))
        online, target = (trainer.module.get_submodule(name) for name in ("online", "target"))
        with torch.no_grad():
            for parameter in target.parameters():
                parameter.mul_(-2)
        generator = torch.Generator().manual_seed(0)
        before, after = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
        action, ended = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 1, 0, 1, 0])
        reward = torch.tensor([1.0, 1, -8, 0.5, 7], dtype=torch.float64)
        batch = Batch(before, pack(action, reward, ended, after), 5, torch.arange(5))
        values, chosen, worth = online(before), online(after).argmax(1), target(after)
        for row, loss in enumerate(TASK.losses(trainer, batch)):
            future = 0 if ended[row] else 0.9 * worth[row, chosen[row]]
            off = (values[row, action[row]] - reward[row] - future).abs()
            torch.testing.assert_close(loss, off**2 / 2 if off < 1 else off - 0.5)

    run_ranks(work, 1)


def test_what_is_packed_is_unpacked() -> None:
    action, after = torch.tensor([3, 0]), torch.randn(2, 3, 4, 4)
    found = unpack(pack(action, torch.tensor([0.5, -1]), torch.tensor([True, False]), after), (3, 4, 4))
    assert found[0].dtype == torch.int64
    assert [each.tolist() for each in found[:3]] == [[3, 0], [0.5, -1], [1, 0]]
    torch.testing.assert_close(found[3], after, rtol=0, atol=0)


def test_the_memory_keeps_the_latest_and_comes_back_from_a_checkpoint() -> None:
    def add(memory: Replay, numbers: range) -> None:
        for number in numbers:
            memory.add(torch.full((2,), float(number)), torch.full((5,), number + 0.5))

    memory = Replay(4, (2,))
    add(memory, range(3))
    rows, _ = memory.sample(200, torch.Generator().manual_seed(0))
    assert set(rows[:, 0].tolist()) == {0, 1, 2}
    add(memory, range(3, 6))
    restored = Replay(4, (2,))
    restored.load(memory.state())
    for each in (memory, restored):
        add(each, range(6, 7))
        rows, followed = each.sample(200, torch.Generator().manual_seed(0))
        assert set(rows[:, 0].tolist()) == {3, 4, 5, 6}
        torch.testing.assert_close(followed[:, 4], rows[:, 0] + 0.5)


def test_time_that_is_up_ends_an_episode_but_does_not_terminate_it() -> None:
    """Breaks if what follows is left out of a transition's worth only because nobody looked on."""
    module = agent()
    config = TrainConfig(batch_size=4, control=CONTROL)

    def work(ctx: DistContext) -> tuple[list[bool], bool]:
        experience = Experience(config, pole(), ctx, module)
        next(iter(experience))
        # an environment whose time is up at once, in the place of 500 steps of balancing
        experience.episode._environment._max_episode_steps = len(experience.episode.actions) + 1
        number, added = experience.number, experience.replay.added
        experience._act(0)
        place = added % CONTROL.replay_size
        return [experience.number == number + 1, experience.episode.actions == []], bool(
            experience.replay.followed[place, 2]
        )

    assert run_ranks(work, 1) == [([True, True], False)]


def test_a_fallen_pole_terminates() -> None:
    episode = Episode(pole(), 0)
    steps = 0
    while not episode.over:
        reward, terminated = episode.step(1)
        steps += 1
    assert (terminated, reward, episode.total) == (True, 1.0, float(steps))
    again = Episode(pole(), 0)
    for action in episode.actions:
        again.step(action)
    np.testing.assert_array_equal(again.observation, episode.observation)
    assert abs(episode.observation[2]) > 2 > abs(episode.observation[0])  # in units of SCALES: fallen at 0.21 radians


def gone_through(ctx: DistContext, epochs: int, resume_at: tuple[int, int] | None) -> list[tuple[Tensor, Tensor]]:
    """All batches of a rank; with `resume_at`, (epoch, batches), a new Experience goes on from there."""
    torch.manual_seed(0)
    config = TrainConfig(batch_size=4, epochs=epochs, control=CONTROL, seed=3)
    module, dataset = agent(), pole()
    experience, found = Experience(config, dataset, ctx, module), []
    for epoch in range(1, epochs + 1):
        experience.set_epoch(epoch)
        for number, batch in enumerate(experience, start=1):
            found.append((batch.inputs, batch.targets))
            if resume_at == (epoch, number):
                break
        if resume_at is not None and epoch == resume_at[0]:
            state, done = experience.own_state(), resume_at[1] * 4 * ctx.world_size
            experience = Experience(config, dataset, ctx, module)
            experience.load_own(state)
            experience.set_epoch(epoch, done)
            found += [(batch.inputs, batch.targets) for batch in experience]
    return found


def test_ranks_go_through_different_things_and_a_resumed_one_through_the_same() -> None:
    whole = run_ranks(lambda ctx: gone_through(ctx, 2, None), 2)
    assert [len(each) for each in whole] == [10, 10]
    assert not torch.equal(whole[0][0][0], whole[1][0][0])
    for resume_at in ((1, 3), (2, 5)):
        resumed = run_ranks(lambda ctx, at=resume_at: gone_through(ctx, 2, at), 2)
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def trained(out: Path, **options: Any) -> list[dict[str, Tensor]]:
    """The model of each rank after a run, or after what there is of it."""
    config = TrainConfig(
        out=out, epochs=2, batch_size=4, control=CONTROL, optim=OptimConfig(optimizer="adam", lr=0.01), **options
    )

    def work(ctx: DistContext) -> dict[str, Tensor]:
        torch.manual_seed(0)
        done = fit(agent(), pole(), config, ctx, Silent(), TASK)
        return dict(done.trainer.module.state_dict())

    out.mkdir(exist_ok=True)
    return run_ranks(work, 2)


@pytest.mark.parametrize("stop_after", [2, 7])
def test_a_resumed_run_ends_with_the_same_weights_to_the_bit(tmp_path: Path, stop_after: int) -> None:
    """Breaks if the memory, the open episode or the target network is not in the checkpoint."""
    whole = trained(tmp_path / "whole")
    begun = trained(tmp_path / "cut", stop_after=stop_after)
    assert largest_difference(begun[0], whole[0]) > 0
    ended = trained(tmp_path / "cut", resume="auto")
    assert [largest_difference(*pair) for pair in zip(ended, whole, strict=True)] == [0, 0]


def test_the_target_is_copied_before_the_first_update_and_every_few_after_it() -> None:
    def work(ctx: DistContext) -> list[bool]:
        trainer = trainer_for(ctx, TASK, agent, control=CONTROL)
        online, target = (trainer.module.get_submodule(name) for name in ("online", "target"))
        batch = Batch(torch.zeros(1, 4), torch.zeros(1, 7), 1, torch.arange(1))
        equal = []
        for _ in range(7):
            with torch.no_grad():
                next(online.parameters()).add_(1)
            TASK.prepare(trainer, batch)
            equal.append(torch.equal(next(online.parameters()), next(target.parameters())))
            trainer.optimizer.step()
            trainer.scheduler.step()
        return equal

    assert run_ranks(work, 1) == [[True, False, False, True, False, False, True]]


def test_the_share_of_random_actions_falls_and_stays() -> None:
    control = ControlConfig(epsilon_start=0.9, epsilon_end=0.1, epsilon_share=0.5)
    assert [control.epsilon(done) for done in (0, 0.25, 0.5, 1)] == pytest.approx([0.9, 0.5, 0.1, 0.1])
    assert ControlConfig(epsilon_share=0, epsilon_end=0.2).epsilon(0) == 0.2


def test_the_return_is_the_same_to_the_bit_at_any_number_of_ranks() -> None:
    found = [each for ranks in (1, 2, 3, 4) for each in outcome(ranks, TASK, agent, pole(), control=CONTROL)]
    assert len(found) == 10
    assert found[0].numbers["test_samples"] == 25
    assert found[0].score == found[0].numbers["test_return"] > found[0].numbers["test_lowest_return"] > 5
    assert all(asdict(each) == asdict(found[0]) for each in found)


def test_an_evaluations_return_is_the_length_of_its_episodes() -> None:
    class Right(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, observations: Tensor) -> Tensor:
            return self.values.expand(len(observations), 2)

    returns = Episodes(pole()).returns(Right(), seed=1, rank=0, world_size=1)
    assert len(returns) == 25
    assert 8 < sum(returns) / 25 < 11  # a pole that is pushed one way falls in about 9 steps
    assert returns != Episodes(pole()).returns(Right(), seed=2, rank=0, world_size=1)


def test_without_gymnasium_a_person_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(Mistake, match=r'expected the package gymnasium.*got none; run pip install "gymnasium>=1.0"'):
        cartpole.count(InputConfig(data="cartpole"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"image_size": 8}, "no --image-size"), ({"folds": 3}, "no --folds"), ({"balance": True}, "no --balance")],
)
def test_options_of_stored_samples_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake, match=f"expected {message} for CartPole"):
        cartpole.count(InputConfig(data="cartpole", **options))


def test_images_and_sharded_models_and_other_networks_are_refused() -> None:
    with pytest.raises(Mistake, match="expected an environment for a model that acts, got --data synthetic"):
        TASK.check(TrainConfig(), images())
    with pytest.raises(Mistake, match="expected a whole model on every rank, since each acts by itself"):
        TASK.check(TrainConfig(strategy="fsdp2"), pole())

    def work(ctx: DistContext) -> None:
        with pytest.raises(Mistake, match="expected a model with the parts online and target, got 0, 1, 2, 3"):
            TASK.make_loaders(TrainConfig(batch_size=4), pole(), ctx, network())

    run_ranks(work, 1)


@pytest.mark.parametrize(
    "options", [{"gamma": 1.0}, {"replay_size": 0}, {"target_every": 0}, {"epsilon_end": 1.5}, {"epsilon_share": -1}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(Mistake, match=f"expected --{name.replace('_', '-')} "):
        ControlConfig(**options)
