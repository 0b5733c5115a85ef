"""Options that do not go together, each pair refused with one sentence before anything starts. Imports no torch."""

from ddp.config import TrainConfig
from ddp.mistake import require
from ddp.parallel_config import ParallelConfig

REPLICAS = ("ddp", "ddp-spawn")
"""Strategies that wrap the model in DistributedDataParallel."""
ONE_RANK = ("single", "dp")
"""Strategies of one process."""
DDP_ONLY = (
    *("bucket_cap_mb", "gradient_as_bucket_view", "static_graph", "find_unused_parameters"),
    *("broadcast_buffers", "comm_hook"),
)
"""Options that only DistributedDataParallel knows."""


def check_pairs(config: TrainConfig, world_size: int) -> None:
    """Raise Mistake for the first pair of options that contradict each other, or that train something wrong."""
    strategy = config.strategy
    if strategy == "auto":
        strategy = "ddp" if world_size > 1 else "single"
    _check_ranks(config, strategy, world_size)
    _check_sync_bn(config, strategy)
    if strategy in REPLICAS:
        _check_ddp(config)
    if strategy in ("dp", "fsdp2"):
        _check_ddp_only(config.parallel, strategy)
    if strategy == "dp":
        require(config.compile == "off", "no --compile with --strategy dp", config.compile, "use --strategy ddp")
    if strategy == "fsdp2":
        _check_sharded(config)


def _check_ranks(config: TrainConfig, strategy: str, world_size: int) -> None:
    if strategy in ONE_RANK:
        require(world_size == 1, f"1 rank with --strategy {strategy}", world_size, "use --strategy ddp")
    ranks = config.parallel.spawn_ranks
    require(
        ranks is None or strategy == "ddp-spawn",
        "--spawn-ranks with --strategy ddp-spawn only",
        f"--strategy {config.strategy}",
        "use --strategy ddp-spawn, or start the ranks with torchrun",
    )


def _check_sync_bn(config: TrainConfig, strategy: str) -> None:
    require(
        config.sync_bn or config.parallel.sync_bn_scope == "world",
        "--sync-bn with --sync-bn-scope node",
        "--no-sync-bn",
        "add --sync-bn, or omit --sync-bn-scope",
    )
    require(
        not config.sync_bn or strategy != "dp",
        "no --sync-bn with --strategy dp, whose copies of the model cannot share statistics",
        "--sync-bn",
        "use --strategy ddp, or omit --sync-bn",
    )


def _check_ddp(config: TrainConfig) -> None:
    parallel = config.parallel
    require(
        not parallel.static_graph or config.accumulate == 1,
        "--accumulate 1 with --static-graph, since DDP fails if its first backward pass is not to communicate",
        config.accumulate,
        "omit --static-graph or --accumulate",
    )
    require(
        not (parallel.static_graph and parallel.find_unused_parameters),
        "--static-graph or --find-unused-parameters",
        "both",
        "omit --find-unused-parameters: a static graph finds them in its first step",
    )
    require(
        config.amp != "fp16" or parallel.comm_hook not in ("fp16", "powersgd"),
        "--amp off or bf16 with this --comm-hook, since scaled gradients overflow in fp16 and PowerSGD would remember "
        "the overflow",
        f"--amp fp16 and --comm-hook {parallel.comm_hook}",
        "use --amp bf16, or --comm-hook bf16",
    )


def _check_ddp_only(parallel: ParallelConfig, strategy: str) -> None:
    defaults = ParallelConfig()
    for name in DDP_ONLY:
        value = getattr(parallel, name)
        require(
            value == getattr(defaults, name),
            f"no --{name.replace('_', '-')} with --strategy {strategy}, which has no such thing",
            value,
            "use --strategy ddp, or omit it",
        )


def _check_sharded(config: TrainConfig) -> None:
    require(
        config.check_every == 0,
        "--check-every 0 with --strategy fsdp2, whose ranks hold different parts of the model",
        config.check_every,
        "omit it",
    )
    require(
        not config.channels_last,
        "no --channels-last with --strategy fsdp2, which cuts weights in their usual order only",
        "--channels-last",
        "use --strategy ddp, or omit it",
    )
