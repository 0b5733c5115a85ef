"""Auto-encoders: images through a narrow layer and back."""

import math

import torch
from torch import Tensor, nn

from models.spec import Shape, model

HINTON = "after Hinton, Salakhutdinov, 'Reducing the dimensionality of data with neural networks', 2006; ReLU, smaller"
KINGMA = (
    "Kingma, Welling, 'Auto-encoding variational Bayes', 2014, with the widths of PyTorch's example; Gaussian decoder"
)


class Autoencoder(nn.Module):
    """Encoder and decoder of one hidden layer each. [N, *shape] -> [N, *shape]."""

    def __init__(self, shape: Shape, hidden: int, code: int) -> None:
        super().__init__()
        values = math.prod(shape)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(values, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, code)
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, values), nn.Unflatten(1, shape)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images to their reconstruction; no bounds, since images are normalised."""
        return self.decoder(self.encoder(images))


class Vae(nn.Module):
    """A variational auto-encoder: the code is normally distributed, its mean and variance are the encoder's output."""

    def __init__(self, shape: Shape, hidden: int, code: int) -> None:
        super().__init__()
        values = math.prod(shape)
        self.noise_size = code
        """Standard normal numbers that `forward` takes for each sample."""
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(values, hidden), nn.ReLU(inplace=True))
        self.mean = nn.Linear(hidden, code)
        self.log_variance = nn.Linear(hidden, code)
        self.decoder = nn.Sequential(
            nn.Linear(code, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, values), nn.Unflatten(1, shape)
        )

    def forward(self, images: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """[N, *shape], noise [N, noise_size] -> out [N, *shape], the mean of the decoder's distribution, and kl [N].

        kl is the divergence, in nats, of the code's distribution from the standard normal one (the paper's appendix B).
        Without noise the code is its mean.
        """
        features = self.encoder(images)
        mean, log_variance = self.mean(features), self.log_variance(features)
        code = mean if noise is None else mean + noise * torch.exp(log_variance / 2)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return {"out": self.decoder(code), "kl": kl}


@model(shape=(1, 28, 28), classes=10, parameters=209_968, source=HINTON, task="reconstruction")
def autoencoder(shape: Shape, classes: int) -> nn.Module:
    """784-128-32-128-784 on 28x28 grey images; samples of any shape."""
    return Autoencoder(shape, hidden=128, code=32)


@model(shape=(1, 28, 28), classes=10, parameters=652_824, source=KINGMA, task="reconstruction")
def vae(shape: Shape, classes: int) -> nn.Module:
    """784-400-20-400-784 on 28x28 grey images; samples of any shape."""
    return Vae(shape, hidden=400, code=20)
