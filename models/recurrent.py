"""Recurrent nets: classifiers that read an image row by row, and one that follows a series."""

from torch import Tensor, nn

from models.spec import Shape, model

ROWS_SOURCE = "the common exercise on MNIST: an image is a sequence of its rows, 128 hidden units"
UNITS, SERIES_UNITS = 128, 32


class Rows(nn.Module):
    """Reads rows from the top, all channels of a row at once, and classifies what it holds after the last.

    [N, C, H, W] -> logits [N, classes].
    """

    def __init__(self, cell: type[nn.RNN] | type[nn.LSTM] | type[nn.GRU], shape: Shape, classes: int) -> None:
        super().__init__()
        channels, _, width = shape
        self.recurrent = cell(channels * width, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        states, _ = self.recurrent(x.transpose(1, 2).flatten(2))
        return self.head(states[:, -1])


class Series(nn.Module):
    """Gives numbers at every step of a series, from that step and those before: [N, T, features] -> [N, T, outputs]."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.recurrent = nn.RNN(features, SERIES_UNITS, batch_first=True)
        self.head = nn.Linear(SERIES_UNITS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Series to series."""
        states, _ = self.recurrent(x)
        return self.head(states)


@model(shape=(1, 28, 28), classes=10, parameters=82_186, source=ROWS_SOURCE)
def lstm_rows(shape: Shape, classes: int) -> nn.Module:
    """An LSTM (Hochreiter and Schmidhuber, 1997) of 128 units."""
    return Rows(nn.LSTM, shape, classes)


@model(shape=(1, 28, 28), classes=10, parameters=21_514, source=ROWS_SOURCE)
def rnn_rows(shape: Shape, classes: int) -> nn.Module:
    """A recurrent net of 128 tanh units (Elman, 1990)."""
    return Rows(nn.RNN, shape, classes)


@model(shape=(1, 28, 28), classes=10, parameters=61_962, source=ROWS_SOURCE)
def gru_rows(shape: Shape, classes: int) -> nn.Module:
    """A GRU (Cho et al., 2014) of 128 units."""
    return Rows(nn.GRU, shape, classes)


@model(
    shape=(50, 1),
    classes=1,
    parameters=1_153,
    source="the common first exercise with recurrent nets: a cosine from a sine, 32 tanh units",
    task="regression",
)
def sine_rnn(shape: Shape, classes: int) -> nn.Module:
    """A recurrent net of 32 tanh units that follows a series of any length."""
    return Series(shape[-1], classes)
