"""What a run trains and is tested on: its folds, samplers, stores and loaders, from the options."""

import torch

from ddp.augment import augment_for
from ddp.config import TrainConfig
from ddp.context import DistContext
from ddp.folds import folded
from ddp.loader import Loader
from ddp.mixing import mixing_for
from ddp.prefetch import Copier
from ddp.sampler import EvalBatches, TrainBatches
from ddp.source import Dataset
from ddp.stores import make_stores


def _samplers(config: TrainConfig, dataset: Dataset, ctx: DistContext) -> tuple[TrainBatches, EvalBatches]:
    train = TrainBatches(
        samples=len(dataset.train),
        global_batch=config.global_batch(ctx.world_size),
        rank=ctx.rank,
        world_size=ctx.world_size,
        seed=config.seed,
        drop_last=config.drop_last,
        balance=dataset.train.labels if config.input.balance else None,
    )
    test = EvalBatches(
        samples=len(dataset.test), batch=config.eval_batch_size, rank=ctx.rank, world_size=ctx.world_size
    )
    return train, test


def make_loaders(config: TrainConfig, dataset: Dataset, ctx: DistContext) -> tuple[Loader, Loader]:
    """Loaders of what is trained and what is tested on. Every rank must call this: images may be decoded together.

    Raises Mistake on all ranks if there are too few samples, an image cannot be decoded or a cache cannot be written.
    """
    dataset = folded(dataset, config.input, config.seed)
    samplers = _samplers(config, dataset, ctx)
    stores = make_stores(config.input, dataset, ctx)
    copier = Copier(ctx.device)

    def loader(number: int, *, train: bool) -> Loader:
        return Loader(
            store=stores[number],
            labels=torch.from_numpy((dataset.train, dataset.test)[number].labels),
            shares=samplers[number],
            augment=augment_for(config.input, config.augment, dataset, config.seed, train=train),
            dataset=dataset,
            copier=copier,
            memory_format=torch.channels_last if config.channels_last else torch.contiguous_format,
            mixing=mixing_for(config.augment, len(dataset.train), config.seed) if train else None,
            prefetch=config.input.prefetch,
        )

    return loader(0, train=True), loader(1, train=False)
