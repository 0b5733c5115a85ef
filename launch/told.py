"""A run's monitor that also tells the launcher of each step, so that a hang is told from slow work."""

import time
from typing import Any

from ddp.progress import Monitor
from launch.reporter import Reporter

EVERY_S = 0.2
"""How often at most; a step of a small model is shorter."""


class Told:
    """Stands before another monitor and hands everything on."""

    def __init__(self, monitor: Monitor, speaker: Reporter) -> None:
        self._monitor, self._speaker = monitor, speaker
        self._steps, self._told_s = 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._monitor, name)

    def step(self, batch: Any) -> None:
        """One more step was issued."""
        self._steps += 1
        self._monitor.step(batch)
        self.alive()

    def alive(self) -> None:
        """Something moves."""
        now = time.monotonic()
        if now - self._told_s >= EVERY_S:
            self._told_s = now
            self._speaker.step(self._steps)
