"""Deep Q-networks: what each action is worth, with a second network for the targets."""

import math

from torch import Tensor, nn

from models.spec import ModelMistake, Shape, model

NATURE = "Mnih et al., 'Human-level control through deep reinforcement learning', 2015"


class Dqn(nn.Module):
    """Two networks of the same kind: `online` is trained, `target` is a copy of it from a while ago.

    Called as one, it is `online`: observations [N, *shape] -> values of the actions [N, actions].
    """

    def __init__(self, online: nn.Module, target: nn.Module) -> None:
        super().__init__()
        self.online, self.target = online, target
        self.target.load_state_dict(online.state_dict())
        self.target.requires_grad_(False)

    def forward(self, observations: Tensor) -> Tensor:
        """Values of the actions by the online network."""
        return self.online(observations)


@model(shape=(4,), classes=2, parameters=2 * 17_410, source=f"after {NATURE}, on four numbers", task="control")
def dqn_mlp(shape: Shape, classes: int) -> nn.Module:
    """4-128-128-2 for CartPole, 17,410 parameters in each network; observations of any shape, any number of actions."""

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, classes),
        )

    return Dqn(network(), network())


@model(shape=(4, 84, 84), classes=4, parameters=2 * 1_686_180, source=NATURE, task="control")
def dqn_nature(shape: Shape, classes: int) -> nn.Module:
    """The paper's network for four frames of 84x84 pixels, 1,686,180 parameters in each network with four actions.

    Raises ModelMistake for frames smaller than 36x36.
    """
    if len(shape) != 3 or min(shape[1:]) < 36:
        raise ModelMistake(
            f"expected frames of at least 36x36 for dqn-nature, got {'x'.join(map(str, shape))}; use dqn-mlp"
        )
    side_1, side_2 = (((size - 4) // 4 - 2) // 2 - 2 for size in shape[1:])

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(shape[0], 32, kernel_size=8, stride=4),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, kernel_size=3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(64 * side_1 * side_2, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, classes),
        )

    return Dqn(network(), network())
