"""What can be known to be wrong before any process is started. Imports no torch, so the answer is instant."""

from ddp import discover
from ddp.config import TrainConfig
from ddp.folds import training_samples
from ddp.mistake import require
from ddp.refusals import check_pairs
from models import zoo
from models.torchvision_weights import check_downloadable


def check_training(config: TrainConfig, world_size: int) -> None:
    """Raise Mistake or ModelMistake if this run cannot work on that many ranks."""
    zoo.check_name(config.model)
    if config.strategy != "auto":
        known = discover.names("ddp.strategies")
        if config.strategy not in known:
            raise discover.unknown("strategy", config.strategy, ["auto", *known], "choose one of them")
    check_pairs(config, world_size)
    weights = config.initial.weights
    require(weights is None or weights.is_file(), "a file of weights in --weights", str(weights), "check the path")
    if config.initial.download_weights is not None:
        check_downloadable(config.model)
    global_batch = config.global_batch(world_size)
    dataset = discover.find("ddp.datasets", config.input.data, kind="data set")
    samples = training_samples(dataset.count(config.input), config.input)
    require(
        samples >= world_size,
        f"at least one training sample for each of the {world_size} ranks",
        samples,
        "use fewer ranks or more data",
    )
    require(
        not config.drop_last or samples >= global_batch,
        f"at least one full batch of {global_batch} training samples with --drop-last",
        samples,
        "use a smaller batch",
    )
