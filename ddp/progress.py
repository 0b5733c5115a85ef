"""What a person sees while a model trains: a progress bar on a terminal, a line per epoch elsewhere, TensorBoard."""

from pathlib import Path
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Monitor(Protocol):
    """Told what happens in a run; makes no collective call and never waits for a device."""

    def say(self, text: str) -> None:
        """Something that a person should know."""
        ...

    def start_epoch(self, epoch: int, steps: int) -> None: ...

    def step(self) -> None:
        """One more step was issued."""
        ...

    def reading(self, step: int, loss: float, lr: float) -> None:
        """The loss was read: the mean over this rank's samples since the last reading."""
        ...

    def end_epoch(self, step: int, epoch: dict[str, Any]) -> None: ...


class Silent:
    """Ranks that print nothing; a context manager, as the display is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def say(self, text: str) -> None: ...

    def start_epoch(self, epoch: int, steps: int) -> None: ...

    def step(self) -> None: ...

    def reading(self, step: int, loss: float, lr: float) -> None: ...

    def end_epoch(self, step: int, epoch: dict[str, Any]) -> None: ...


class Display:
    """Rank 0: terminal and TensorBoard events; a context manager."""

    def __init__(self, epochs: int, out: Path | None) -> None:
        self.epochs = epochs
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("train", epoch=0, epochs=epochs, loss="-", total=None)
        self.writer = None
        if out is not None:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(out / "tensorboard"))

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, soft_wrap=True, markup=False)

    def start_epoch(self, epoch: int, steps: int) -> None:
        """Begin a new bar."""
        self.bar.reset(self.task, total=steps, epoch=epoch, loss="-")

    def step(self) -> None:
        """Advance the bar; it redraws itself at its own pace, from counters that are on the CPU."""
        self.bar.advance(self.task)

    def reading(self, step: int, loss: float, lr: float) -> None:
        """Show and log the loss."""
        self.bar.update(self.task, loss=f"{loss:.3f}")
        if self.writer is not None:
            self.writer.add_scalar("train/loss", loss, step)
            self.writer.add_scalar("train/lr", lr, step)

    def end_epoch(self, step: int, epoch: dict[str, Any]) -> None:
        """One line per epoch, and its results as events."""
        accuracy = epoch["test_correct"] / epoch["test_samples"]
        rate = epoch["train_samples"] / epoch["train_s"]
        self.console.print(
            f"epoch {epoch['epoch']}/{self.epochs}  train loss {epoch['train_loss']:.4f}  "
            f"test loss {epoch['test_loss']:.4f}  test accuracy {accuracy:.2%}  {rate:,.0f} samples/s",
            soft_wrap=True,
        )
        if self.writer is not None:
            self.writer.add_scalar("test/loss", epoch["test_loss"], step)
            self.writer.add_scalar("test/accuracy", accuracy, step)
            self.writer.add_scalar("train/samples_per_s", rate, step)
