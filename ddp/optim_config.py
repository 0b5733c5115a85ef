"""Options of the optimizer and the learning-rate schedule. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Literal

from ddp.mistake import require


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights are updated."""

    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "asgd"] = "sgd"
    """Update rule, with torch's own settings where no flag names them."""
    lr: float = 0.1
    """Peak learning rate; used as it is, unless --lr-scaling says otherwise."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Multiply --lr by global batch / --lr-base-batch, or by its square root."""
    lr_base_batch: int = 256
    """Samples of all ranks in a step for which --lr was chosen; matters with --lr-scaling only."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's form of sgd's momentum."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """What adam and adamw keep of the averages of gradients and of their squares in a step; GANs take 0.5,0.999."""
    weight_decay: float = 5e-4
    """L2 penalty, or decoupled decay (adamw)."""
    decay_norm_and_bias: bool = True
    """Let --weight-decay act on every parameter; otherwise not on those of one dimension: biases, normalisation."""
    l1: float = 0.0
    """L1 penalty on every parameter: its sign times this is added to the gradient; the reported loss leaves it out."""
    schedule: Literal["linear", "cosine", "constant", "step", "multistep", "one-cycle"] = "cosine"
    """How the learning rate falls after the warm-up; linear, cosine and one-cycle end near zero."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises: linearly from zero; one-cycle: from a 25th of its peak."""
    lr_step: float = 1 / 3
    """Share of all steps between two drops of `--schedule step`."""
    lr_milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of all steps at which `--schedule multistep` drops."""
    lr_gamma: float = 0.1
    """What a drop of `--schedule step` or `multistep` multiplies the learning rate by."""
    clip_norm: float = 0.0
    """Scale gradients down to this norm, over all parameters, where it is exceeded; 0 leaves them."""
    ema_decay: float = 0.0
    """Keep a moving average of the weights with this decay, such as 0.999, and test and save it; 0 keeps none."""
    label_smoothing: float = 0.0
    """Share of the target's probability spread over all classes, in training only."""

    def __post_init__(self) -> None:
        require(self.lr > 0 and math.isfinite(self.lr), "a positive, finite --lr", self.lr, "try 0.1")
        require(
            self.lr_base_batch >= 1, "--lr-base-batch of at least 1", self.lr_base_batch, "give samples, such as 256"
        )
        require(0 <= self.momentum < 1, "--momentum in [0, 1)", self.momentum, "try 0.9")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "two --betas in [0, 1)",
            ",".join(map(str, self.betas)) or "none",
            "try 0.9,0.999",
        )
        require(
            self.weight_decay >= 0 and math.isfinite(self.weight_decay),
            "a finite --weight-decay of at least 0",
            self.weight_decay,
            "try 5e-4",
        )
        require(
            self.clip_norm >= 0 and math.isfinite(self.clip_norm),
            "a finite --clip-norm of at least 0",
            self.clip_norm,
            "0 does not clip",
        )
        require(0 <= self.ema_decay < 1, "--ema-decay in [0, 1)", self.ema_decay, "try 0.999, or 0 for none")
        require(self.l1 >= 0 and math.isfinite(self.l1), "a finite --l1 of at least 0", self.l1, "0 is no penalty")
        require(0 <= self.warmup < 1, "--warmup in [0, 1), a share of all steps", self.warmup, "try 0.1")
        require(0 < self.lr_step < 1, "--lr-step in (0, 1), a share of all steps", self.lr_step, "try 0.3333")
        shares = self.lr_milestones
        require(
            bool(shares) and all(0 < share < 1 for share in shares) and list(shares) == sorted(set(shares)),
            "--lr-milestones that rise and lie in (0, 1), shares of all steps",
            ",".join(map(str, shares)) or "none",
            "try 0.5,0.75",
        )
        require(0 < self.lr_gamma <= 1, "--lr-gamma in (0, 1]", self.lr_gamma, "try 0.1")
        require(0 <= self.label_smoothing < 1, "--label-smoothing in [0, 1)", self.label_smoothing, "try 0.1")
        self._check_schedule()

    def _check_schedule(self) -> None:
        """Raise Mistake if the schedule and the warm-up contradict each other."""
        drops = {"step": ("--lr-step", self.lr_step), "multistep": ("--lr-milestones", self.lr_milestones[0])}
        if self.schedule in drops:
            flag, first = drops[self.schedule]
            require(
                first >= self.warmup,
                f"a first drop after the warm-up, which ends at {self.warmup} of the run",
                f"{flag} {first}",
                f"raise {flag} or lower --warmup",
            )
        require(
            self.schedule != "one-cycle" or self.warmup > 0,
            "--warmup above 0 with --schedule one-cycle",
            self.warmup,
            "try 0.3, or --schedule cosine",
        )
