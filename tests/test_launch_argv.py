"""Flags to dataclasses and back; mistakes are one line."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.run import get_args_parser

from bench.cases.scaling import Options as ScalingOptions
from ddp.augment_config import AugmentConfig
from ddp.config import TrainConfig
from ddp.initial_config import InitialConfig
from ddp.input_config import InputConfig
from ddp.optim_config import OptimConfig
from ddp.parallel_config import ParallelConfig
from launch.argv import UsageError, parse, to_argv


def parsed(kind: type, argv: list[str]) -> Any:
    return parse(kind, argv, prog="test", description="")


CONFIGS = st.builds(
    TrainConfig,
    model=st.sampled_from(["resnet18", "dir with space/m.py:net", "x=y"]),
    sync_bn=st.booleans(),
    amp=st.sampled_from(["off", "bf16", "fp16"]),
    epochs=st.integers(1, 9),
    batch_size=st.none() | st.integers(1, 512),
    seed=st.integers(-3, 3),
    timeout_s=st.floats(1, 1e4),
    out=st.none() | st.just(Path("runs/a b")),
    input=st.builds(InputConfig, data_dir=st.none() | st.just(Path("/d")), workers=st.integers(0, 4)),
    optim=st.builds(OptimConfig, lr=st.floats(1e-6, 10), schedule=st.sampled_from(["linear", "cosine"])),
)


@settings(deadline=None, max_examples=60)
@given(config=CONFIGS)
def test_flags_from_to_argv_parse_back_to_the_same_config(config: TrainConfig) -> None:
    assert parsed(TrainConfig, to_argv(config)) == config


def test_only_flags_that_differ_from_their_defaults_are_written() -> None:
    assert to_argv(TrainConfig()) == []
    assert to_argv(TrainConfig(sync_bn=True, optim=OptimConfig(lr=0.5))) == ["--sync-bn", "--lr", "0.5"]


def test_numbers_of_ranks_are_separated_by_commas() -> None:
    options = parsed(ScalingOptions, ["--ranks", "1,2,4", "--batch-size", "8"])
    assert options.ranks == (1, 2, 4)
    assert parsed(ScalingOptions, to_argv(options)) == options


def test_shares_of_a_run_are_separated_by_commas() -> None:
    config = parsed(TrainConfig, ["--schedule", "multistep", "--lr-milestones", "0.3,0.625,0.9"])
    assert config.optim.lr_milestones == (0.3, 0.625, 0.9)
    assert parsed(TrainConfig, to_argv(config)) == config
    with pytest.raises(UsageError, match=r"numbers separated by commas, such as 0.5,0.75, got '0.5;0.75'"):
        parsed(TrainConfig, ["--lr-milestones", "0.5;0.75"])


@pytest.mark.parametrize("words", [["--pretrained", "a.pt"], ["--pretrained=a.pt"], ["--weights", "a.pt"]])
def test_weights_have_the_name_that_people_look_for_as_well(words: list[str]) -> None:
    assert parse(TrainConfig, words, prog="test", description="").initial.weights == Path("a.pt")


def test_dashes_and_underscores_are_the_same() -> None:
    assert parsed(TrainConfig, ["--batch_size", "8"]) == parsed(TrainConfig, ["--batch-size", "8"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lr", "fast"], "^--lr: could not convert string to float: 'fast' .*see test --help"),
        (["--lr", "-1"], "^expected a positive, finite --lr, got -1.0; try 0.1"),
        (["--lr", "nan"], "expected a positive, finite --lr, got nan; try 0.1"),
        (["--amp", "fp8"], r"invalid choice 'fp8' for argument '--amp'. Expected one of \('off', 'bf16', 'fp16'\)"),
        (["--modle", "x"], "^Unrecognized options: --modle, x; did you mean --model\\? .see test --help.$"),
        (["--epochs", "0"], "expected --epochs of at least 1, got 0; give a positive whole number"),
        (["--epochs", "1.5"], "--epochs"),
        (["--batch-size", "8", "--global-batch-size", "16"], "expected --batch-size or --global-batch-size, got both"),
        (["--batch-size"], "^Missing value for argument '--batch-size'. Expected 1 values. "),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parsed(TrainConfig, argv)
    assert "\n" not in str(caught.value)
    assert not set("│╭╰─") & set(str(caught.value))


def test_ranks_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="whole numbers separated by commas, such as 1,2,4, got '1,two'"):
        parsed(ScalingOptions, ["--ranks", "1,two"])


KINDS = (TrainConfig, InputConfig, OptimConfig, AugmentConfig, ParallelConfig, InitialConfig, ScalingOptions)


def test_no_flag_of_ours_is_taken_by_torchrun() -> None:
    """argparse before Python 3.12 takes a worker's flag for torchrun's own if it is the start of one of those."""
    theirs = [option for action in get_args_parser()._actions for option in action.option_strings]
    ours = {"--" + field.name.replace("_", "-") for kind in KINDS
            for field in dataclasses.fields(kind)}  # fmt: skip
    clashes = {(flag, option) for flag in ours for option in theirs if option.startswith(flag)}
    assert not clashes
