"""The one place that reads a worker's environment: the variables that torchrun sets."""

from collections.abc import Mapping
from dataclasses import dataclass

from ddp.mistake import Mistake


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """Who this process is among the processes of the launch."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    launched: bool
    """Whether torchrun started this process; False means it runs alone."""
    restarts: int = 0
    """How often all ranks were started again within this launch."""


VARIABLES = {
    "rank": "RANK",
    "world_size": "WORLD_SIZE",
    "local_rank": "LOCAL_RANK",
    "local_world_size": "LOCAL_WORLD_SIZE",
    "node_rank": "GROUP_RANK",
}
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
ALONE = RankInfo(rank=0, world_size=1, local_rank=0, local_world_size=1, node_rank=0, launched=False)


def read_rank(environ: Mapping[str, str]) -> RankInfo:
    """Parse torchrun's variables; none of them set means one process that runs alone.

    Raises Mistake if only some are set, or if one is not a whole number.
    """
    missing = [name for name in VARIABLES.values() if name not in environ]
    if len(missing) == len(VARIABLES):
        return ALONE
    if missing:
        raise Mistake(
            f"expected all of {', '.join(VARIABLES.values())} in the environment, missing {', '.join(missing)}; "
            "start with torchrun, or unset the others"
        )
    try:
        restarts = sum(int(environ[name]) for name in [RESTARTS] if name in environ)
        numbers = {field: int(environ[name]) for field, name in VARIABLES.items()}
        return RankInfo(launched=True, restarts=restarts, **numbers)
    except ValueError as error:
        raise Mistake(
            f"expected whole numbers in {', '.join(VARIABLES.values())}, got {error}; start with torchrun"
        ) from None
