"""Options of learning to act. Imports no torch."""

from dataclasses import dataclass

from ddp.mistake import require


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """How an agent explores and what it learns from; matters to models of the task control only."""

    gamma: float = 0.99
    """Discount: what a reward of the next step is worth now."""
    replay_size: int = 50_000
    """Transitions that each rank remembers, the latest ones."""
    learning_starts: int = 1_000
    """Steps at random that each rank takes before the first update."""
    env_steps_per_update: int = 4
    """Steps that each rank takes in its environment before each update."""
    target_every: int = 50
    """Updates after which the target network becomes what the online network is."""
    epsilon_start: float = 1.0
    """Share of actions at random, at the first update."""
    epsilon_end: float = 0.05
    """Share of actions at random, at the end of its fall and from there on."""
    epsilon_share: float = 0.2
    """Share of the run's updates over which the share of actions at random falls."""

    def __post_init__(self) -> None:
        require(0 <= self.gamma < 1, "--gamma in [0, 1)", self.gamma, "try 0.99")
        for flag, value in (
            ("--replay-size", self.replay_size),
            ("--learning-starts", self.learning_starts),
            ("--env-steps-per-update", self.env_steps_per_update),
            ("--target-every", self.target_every),
        ):
            require(value >= 1, f"{flag} of at least 1", value, "give a positive whole number")
        for flag, share in (
            ("--epsilon-start", self.epsilon_start),
            ("--epsilon-end", self.epsilon_end),
            ("--epsilon-share", self.epsilon_share),
        ):
            require(0 <= share <= 1, f"{flag} in [0, 1]", share, "give a share, such as 0.05")

    def epsilon(self, done: float) -> float:
        """Share of actions at random when that share of the run's updates is done."""
        left = max(0.0, 1 - done / self.epsilon_share) if self.epsilon_share else 0.0
        return self.epsilon_end + (self.epsilon_start - self.epsilon_end) * left
