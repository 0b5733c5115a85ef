"""What a person sees while a model trains: a progress bar on a terminal, a line per epoch elsewhere, TensorBoard."""

from pathlib import Path
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from ddp.loader import Batch
from ddp.metrics import Confusion
from ddp.source import Dataset
from ddp.task import Outcome
from ddp.tensorboard import Events


class Monitor(Protocol):
    """Told what happens in a run; makes no collective call and never waits for a device."""

    def say(self, text: str) -> None:
        """Something that a person should know."""
        ...

    def resumed(self, step: int) -> None:
        """The run goes on after this step; told before all that follows."""
        ...

    def begin(self, module: nn.Module, batch: Batch, dataset: Dataset) -> None:
        """The first training batch of this launch, and the model itself, not its wrapper; neither may be changed."""
        ...

    def start_epoch(self, epoch: int, steps: int) -> None: ...

    def step(self, batch: Batch) -> None:
        """One more step was issued."""
        ...

    def alive(self) -> None:
        """Something moves between steps, such as an evaluation."""
        ...

    def reading(self, step: int, loss: float, lr: float, grad_norm: float | None = None) -> None:
        """The loss was read: the mean over this rank's samples since the last reading. grad_norm: of the last step."""
        ...

    def confusion(self, step: int, confusion: Confusion, classes: tuple[str, ...]) -> None:
        """The model was evaluated: samples of row's class that were taken for the column's."""
        ...

    def end_epoch(self, step: int, epoch: dict[str, Any], outcome: Outcome) -> None: ...


class Silent:
    """Ranks that print nothing; a context manager, as the display is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def say(self, text: str) -> None: ...

    def resumed(self, step: int) -> None: ...

    def begin(self, module: nn.Module, batch: Batch, dataset: Dataset) -> None: ...

    def start_epoch(self, epoch: int, steps: int) -> None: ...

    def step(self, batch: Batch) -> None: ...

    def alive(self) -> None: ...

    def reading(self, step: int, loss: float, lr: float, grad_norm: float | None = None) -> None: ...

    def confusion(self, step: int, confusion: Confusion, classes: tuple[str, ...]) -> None: ...

    def end_epoch(self, step: int, epoch: dict[str, Any], outcome: Outcome) -> None: ...


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
        self.events = None if out is None else Events(out / "tensorboard")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        if self.events is not None:
            self.events.close()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, soft_wrap=True, markup=False)

    def resumed(self, step: int) -> None:
        """Make void what was logged of later steps."""
        if self.events is not None:
            self.events.resumed(step)

    def begin(self, module: nn.Module, batch: Batch, dataset: Dataset) -> None:
        """Log the batch's first images and the model's graph; what is trained stays as it is, to the last bit."""
        if self.events is None:
            return
        if len(dataset.shape) == 3:
            self.events.images(batch, dataset)
        trouble = self.events.graph(module, batch)
        if trouble is not None:
            self.say(f"TensorBoard shows no graph of this model: {trouble}")

    def start_epoch(self, epoch: int, steps: int) -> None:
        """Begin a new bar."""
        self.bar.reset(self.task, total=steps, epoch=epoch, loss="-")

    def step(self, batch: Batch) -> None:
        """Advance the bar; it redraws itself at its own pace, from counters that are on the CPU."""
        self.bar.advance(self.task)

    def alive(self) -> None:
        """The bar shows steps only."""

    def reading(self, step: int, loss: float, lr: float, grad_norm: float | None = None) -> None:
        """Show and log the loss."""
        self.bar.update(self.task, loss=f"{loss:.3f}")
        if self.events is not None:
            self.events.scalars(step, {"train/loss": loss, "train/lr": lr})
            if grad_norm is not None:
                self.events.scalars(step, {"train/grad_norm": grad_norm})

    def confusion(self, step: int, confusion: Confusion, classes: tuple[str, ...]) -> None:
        """Log the matrix as an image, and the recall of each class."""
        if self.events is not None:
            self.events.confusion(step, confusion, classes)

    def end_epoch(self, step: int, epoch: dict[str, Any], outcome: Outcome) -> None:
        """One line per epoch, and its results as events."""
        rate = epoch["train_samples"] / epoch["train_s"]
        self.console.print(
            f"epoch {epoch['epoch']}/{self.epochs}  train loss {epoch['train_loss']:.4f}  {outcome.text}  "
            f"{rate:,.0f} samples/s",
            soft_wrap=True,
        )
        if self.events is not None:
            curves = {f"test/{name}": value for name, value in outcome.curves.items()}
            self.events.scalars(step, curves | {"train/samples_per_s": rate})
