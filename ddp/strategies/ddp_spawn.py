"""DistributedDataParallel in processes that one command starts itself: `launch/spawn.py`, without torchrun."""

from ddp.strategies.ddp import Ddp


class DdpSpawn(Ddp):
    """What the ranks do is what they do with ddp; only who starts them differs."""


STRATEGY = DdpSpawn()
