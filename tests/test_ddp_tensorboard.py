"""The event files of a run: what is in them, and that writing them changes nothing that is trained."""

import io
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.graph_pb2 import GraphDef
from torch import Tensor, nn

from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.fit import fit
from ddp.input_config import InputConfig
from ddp.loader import Batch
from ddp.loop import train_step
from ddp.progress import Display, Silent
from ddp.source import Dataset, array_split
from ddp.tensorboard import heat_map, image_grid, model_graph
from ddp.trainer import Trainer, make_trainer
from tests.ranks import run_ranks

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (36, 3, 6, 5), dtype=np.uint8)
LABELS = np.arange(36) % 4
SPLIT = array_split(IMAGES, LABELS)
DATASET = Dataset(
    train=SPLIT, test=SPLIT, shape=(3, 6, 5), stored=(3, 6, 5), classes=("cat", "dog", "a/b", "é"),
    mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), flip=False,
)  # fmt: skip
CONFIG = TrainConfig(global_batch_size=12, input=InputConfig(crop_padding=0, cache="memory"), log_every=1)


def normalised() -> Batch:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (DATASET.mean, DATASET.std))
    images = (torch.from_numpy(IMAGES) / 255 - mean) / std
    return Batch(images, torch.from_numpy(LABELS), 36, torch.arange(36))


class Block(nn.Module):
    """Two paths that meet, with everything that has a state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn(self.conv(x)))


class Drawing(nn.Dropout):
    """Draws random numbers in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        return super().forward(x)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Drawing(0.5), nn.Flatten(), nn.Linear(90, 4))


class Untraceable(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("no pictures\nplease")
        return super().forward(x)


def events(out: Path) -> Iterator[Event]:
    """The events of the newest file, in order. A record: length uint64, its checksum uint32, data, checksum uint32."""
    data = max((out / "tensorboard").glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
    content, at = data.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def values(out: Path) -> dict[tuple[str, int], Any]:
    return {(value.tag, event.step): value for event in events(out) for value in event.summary.value}


def pixels(value: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))


def test_images_are_seen_as_they_were_before_normalisation_in_rows_of_eight(tmp_path: Path) -> None:
    with Display(1, tmp_path) as display:
        display.begin(net(), normalised(), DATASET)
    shown = pixels(values(tmp_path)["train/images", 0])
    assert shown.shape == (4 * 8, 8 * 7, 3)  # a pixel of border around 6 x 5
    for number in range(32):
        row, column = divmod(number, 8)
        cell = shown[row * 8 + 1 : row * 8 + 7, column * 7 + 1 : column * 7 + 6]
        assert np.array_equal(cell, IMAGES[number].transpose(1, 2, 0))


@pytest.mark.parametrize(("channels", "count", "shape"), [(1, 3, (1, 8, 21)), (2, 9, (1, 16, 56)), (4, 1, (3, 8, 7))])
def test_a_grid_takes_any_number_of_images_and_channels(channels: int, count: int, shape: tuple[int, int, int]) -> None:
    dataset = replace(DATASET, mean=(0.5,) * channels, std=(0.5,) * channels)
    grid = image_grid(torch.ones(count, channels, 6, 5), dataset)
    assert tuple(grid.shape) == shape
    assert int((grid == 255).sum()) == count * shape[0] * 30  # white images, black borders and gaps


def test_the_graph_has_every_layer_under_its_name_and_the_two_paths_meet() -> None:
    graph = model_graph(net(), torch.zeros(1, 3, 6, 5))
    nodes = {node.name: node for node in graph.node}
    assert list(nodes["0/conv/convolution"].input) == ["input"]
    assert list(nodes["0/bn/batch_norm"].input) == ["0/conv/convolution"]
    assert list(nodes["0/add"].input) == ["input", "0/bn/batch_norm"]
    assert [dim.size for dim in nodes["0/add"].attr["_output_shapes"].list.shape[0].dim] == [1, 3, 6, 5]
    assert list(nodes["output"].input) == ["3/linear"]
    assert all(source in nodes for node in graph.node for source in node.input)


def test_the_graph_is_in_the_file(tmp_path: Path) -> None:
    with Display(1, tmp_path) as display:
        display.begin(net(), normalised(), DATASET)
    (graph,) = [GraphDef.FromString(event.graph_def) for event in events(tmp_path) if event.graph_def]
    assert {"0/conv/convolution", "3/linear"} <= {node.name for node in graph.node}


def test_a_model_without_a_graph_is_told_in_one_line_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(1, tmp_path) as display:
        display.begin(Untraceable(*net()), normalised(), DATASET)
    assert capsys.readouterr().err == "TensorBoard shows no graph of this model: no pictures\n"
    assert ("train/images", 0) in values(tmp_path)


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    grads = {f"grad {name}": value.grad for name, value in trainer.module.named_parameters() if value.grad is not None}
    momentum = {f"momentum {n}": s["momentum_buffer"] for n, s in enumerate(trainer.optimizer.state.values())}
    state = {**trainer.module.state_dict(), **grads, **momentum, "generator": torch.get_rng_state()}
    return {name: tensor.clone() for name, tensor in state.items()}


def test_watching_a_run_changes_no_bit_of_it(tmp_path: Path) -> None:
    def train(ctx: DistContext, watched: bool) -> dict[str, Tensor]:
        trainer = make_trainer(net(), replace(CONFIG, sync_bn=True), ctx, 3)
        torch.manual_seed(ctx.rank)
        whole = normalised()
        part = slice(ctx.rank, None, ctx.world_size)
        batch = Batch(whole.inputs[part], whole.targets[part], 36, whole.indices[part])
        trainer.train_mode()
        with Display(1, tmp_path / "watched") if watched and ctx.is_main else Silent() as monitor:
            for step in range(3):
                if step == 1:  # with gradients and running statistics in place
                    monitor.begin(trainer.module, batch, DATASET)
                train_step(trainer, batch)
                monitor.reading(step, 1.0, 0.1, 2.0)
        assert all(layer.training for layer in trainer.module.modules())
        return state_of(trainer)

    for plain, watched in run_ranks(lambda ctx: (train(ctx, watched=False), train(ctx, watched=True)), 2):
        assert plain.keys() == watched.keys()
        assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert any(event.graph_def for event in events(tmp_path / "watched"))


def test_a_whole_run_ends_with_the_same_bits_with_and_without_a_folder(tmp_path: Path) -> None:
    def train(ctx: DistContext) -> list[dict[str, Tensor]]:
        states = []
        for out in (None, tmp_path):
            with Display(2, out) if ctx.is_main else Silent() as monitor:
                states.append(state_of(fit(net(), DATASET, replace(CONFIG, epochs=2, out=out), ctx, monitor).trainer))
        return states

    for plain, watched in run_ranks(train, 2):
        assert all(torch.equal(plain[name], watched[name]) for name in plain)
    logged = values(tmp_path)
    assert {("train/loss", 1), ("train/lr", 6), ("test/accuracy", 3), ("test/loss", 6)} <= logged.keys()


def test_the_gradient_norm_is_a_curve_where_it_is_known(tmp_path: Path) -> None:
    with Display(1, tmp_path) as display:
        display.reading(5, 1.0, 0.1, 2.5)
        display.reading(6, 1.0, 0.1, None)
    logged = values(tmp_path)
    assert logged["train/grad_norm", 5].simple_value == 2.5
    assert ("train/grad_norm", 6) not in logged


def test_a_resumed_run_makes_void_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with Display(1, tmp_path) as display:
        for step in (1, 2, 3, 4):
            display.reading(step, 1.0, 0.1)
    with Display(1, tmp_path) as display:
        display.resumed(2)
        display.begin(net(), normalised(), DATASET)
        display.reading(3, 2.0, 0.1)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # although both began in the same second
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [3]  # TensorBoard drops what earlier files have from there on
    assert ("train/images", 2) in values(tmp_path)


def test_a_confusion_matrix_is_a_picture_and_a_recall_for_each_class(tmp_path: Path) -> None:
    matrix = [[8, 0, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 2, 2]]
    colours = heat_map(matrix)
    assert tuple(colours.shape) == (3, 256, 256)
    cells = colours[:, ::64, ::64]
    assert cells[:, 0, 0].tolist() == [8, 48, 107]
    assert cells[:, 0, 1].tolist() == cells[:, 2, 2].tolist() == [255, 255, 255]
    assert cells[:, 3, 2].tolist() == cells[:, 3, 3].tolist()
    with Display(1, tmp_path) as display:
        display.confusion(7, matrix, DATASET.classes)
    logged = values(tmp_path)
    assert np.array_equal(pixels(logged["test/confusion", 7]), colours.permute(1, 2, 0).numpy())
    recalls = {tag: value.simple_value for (tag, _), value in logged.items() if tag.startswith("recall/")}
    assert recalls == {"recall/00_cat": 1.0, "recall/01_dog": 0.75, "recall/03_é": 0.5}
