"""What TensorBoard shows of a run: curves, the first images as the model sees them, its graph, its mistakes by class.

tensorboardX writes the files. The graph is made here, since tensorboardX leaves that to the `tensorboard` package,
which writing events needs for nothing else.
"""

import copy
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from ddp.loader import Batch
from ddp.metrics import Confusion, recall
from ddp.source import Dataset

GRID_ROWS, GRID_COLUMNS = 4, 8
LARGEST_RECALL = 50
"""Classes up to which each has a curve of its own."""
HEAT_MAP_PIXELS = 256
"""Height and width of a confusion matrix, at least."""
DARKEST = (8, 48, 107)
"""Red, green, blue of a share of one; zero is white."""


def image_grid(images: Tensor, dataset: Dataset) -> Tensor:
    """Normalised images [N, C, H, W] as they were before it, uint8 [3 or 1, height, width]: at most 8 in a row, 4 rows.

    Of two channels, or of more than three, those are shown that make a grey or a colour image.
    """
    images = images[: GRID_ROWS * GRID_COLUMNS].detach().float().cpu()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    bytes_ = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    bytes_ = pad(bytes_[:, : 3 if bytes_.shape[1] >= 3 else 1], (1, 1, 1, 1))
    count, channels, height, width = bytes_.shape
    columns = min(GRID_COLUMNS, count)
    rows = -(-count // columns)
    full = torch.cat([bytes_, bytes_.new_zeros(rows * columns - count, channels, height, width)])
    grid = full.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def heat_map(confusion: Confusion) -> Tensor:
    """Each row's shares as colours, uint8 [3, height, width]; a class without samples is white."""
    counts = torch.tensor(confusion, dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    shade = 255 - torch.tensor(DARKEST, dtype=torch.float64)
    colours = (255 - shade.view(3, 1, 1) * shares).round().to(torch.uint8)
    cell = max(1, -(-HEAT_MAP_PIXELS // len(counts)))
    return colours.repeat_interleave(cell, 1).repeat_interleave(cell, 2)


def _copy_on_cpu(module: nn.Module) -> nn.Module:
    """A copy whose tensors are on the CPU; process groups cannot be copied and are shared."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        if type(parameter) is not nn.Parameter:
            raise TypeError(f"its weights are of the type {type(parameter).__name__}")
        values = parameter.detach().to("cpu", copy=True)
        memo[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    for layer in module.modules():
        memo |= {id(value): value for value in vars(layer).values() if isinstance(value, dist.ProcessGroup)}
    return copy.deepcopy(module, memo)


def _traced(module: nn.Module, image: Tensor) -> Any:
    """torch's graph of a copy of the model in evaluation mode; model, gradients and generators stay as they are."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer is deprecated, and warns of all that a picture need not keep
        return torch.jit.trace(_copy_on_cpu(module).eval(), image, check_trace=False).inlined_graph


def _shape_of(value: Any) -> Sequence[int] | None:
    """Sizes of a value of the graph; None if it is no tensor of known size."""
    sizes = value.type().sizes() if value.type().kind() == "TensorType" else None
    return None if sizes is None or None in sizes else sizes


def _node(name: str, op: str, sources: Sequence[str], shape: Sequence[int] | None) -> Any:
    from tensorboardX.proto.attr_value_pb2 import AttrValue
    from tensorboardX.proto.node_def_pb2 import NodeDef
    from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

    node = NodeDef(name=name, op=op, input=sources)
    if shape is not None:
        sizes = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
        node.attr["_output_shapes"].CopyFrom(AttrValue(list=AttrValue.ListValue(shape=[sizes])))
    return node


def model_graph(module: nn.Module, image: Tensor) -> Any:
    """A model's operations on tensors as a GraphDef, each under the name of its layer: layer1/0/conv1/convolution.

    image float32 [1, C, H, W], on the CPU. Raises whatever the model raises while it is copied and traced.
    """
    from tensorboardX.proto.graph_pb2 import GraphDef

    graph = _traced(module, image)
    _, *inputs = graph.inputs()
    nodes = [_node("input", "input", (), tuple(image.shape))]
    sources: dict[str, list[str]] = {value.debugName(): ["input"] for value in inputs}
    used: dict[str, int] = {"input": 1, "output": 1}
    for operation in graph.nodes():
        outputs = list(operation.outputs())
        before = [name for value in operation.inputs() for name in sources.get(value.debugName(), [])]
        before = list(dict.fromkeys(before))
        if operation.kind().startswith("aten::") and any(out.type().kind() == "TensorType" for out in outputs):
            layer = operation.scopeName().rpartition("/")[2].removeprefix("__module").removeprefix(".")
            kind = operation.kind().removeprefix("aten::").strip("_")
            name = f"{layer.replace('.', '/')}/{kind}".removeprefix("/")
            used[name] = used.get(name, 0) + 1
            name = name if used[name] == 1 else f"{name}_{used[name]}"
            nodes.append(_node(name, kind, before, _shape_of(outputs[0])))
            before = [name]
        sources |= {out.debugName(): before for out in outputs}  # lists and shapes only pass on where they come from
    ends = [name for value in graph.outputs() for name in sources.get(value.debugName(), [])]
    return GraphDef(node=[*nodes, _node("output", "output", ends, None)])


class Events:
    """Event files of one run in a folder; the first of them is made with the first event."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done = 0
        self._writer: Any = None
        self._first_step = 0

    def resumed(self, step: int) -> None:
        """The run goes on after `step`: events of later steps, from before, are redone. Call it before all else."""
        self.done, self._first_step = step, step + 1

    @property
    def writer(self) -> Any:
        """tensorboardX's writer. TensorBoard drops what older files of the folder say of this run's steps."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # Names hold the time in seconds; a second launch within one of them must not overwrite the first.
            suffix = f".{len(list(self.folder.glob('events.*')))}"
            self._writer = SummaryWriter(str(self.folder), purge_step=self._first_step, filename_suffix=suffix)
        return self._writer

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One point of each curve."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def images(self, batch: Batch, dataset: Dataset) -> None:
        """The first images of a batch."""
        self.writer.add_image("train/images", image_grid(batch.inputs, dataset).numpy(), self.done)

    def graph(self, module: nn.Module, batch: Batch) -> str | None:
        """The model's graph -> why there is none, in one line, if it cannot be had."""
        from tensorboardX.proto.event_pb2 import Event

        try:
            graph = model_graph(module, batch.inputs[:1].detach().float().cpu())
        except Exception as error:  # a picture is not worth the run, whatever a model does when it is copied
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        self.writer.file_writer.add_event(Event(graph_def=graph.SerializeToString()))
        return None

    def confusion(self, step: int, confusion: Confusion, classes: Sequence[str]) -> None:
        """The matrix as an image, rows the truth; and each class's recall as a curve, if they are few."""
        self.writer.add_image("test/confusion", heat_map(confusion).numpy(), step)
        if len(classes) > LARGEST_RECALL:
            return
        for number, (name, share) in enumerate(zip(classes, recall(confusion), strict=True)):
            if share is not None:
                tag = re.sub(r"[^-.\w]", "_", f"{number:02}_{name}")
                self.writer.add_scalar(f"recall/{tag}", share, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
