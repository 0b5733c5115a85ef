"""Pairs of options that are refused, and neighbours of each that are not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ddp.config import TrainConfig
from ddp.mistake import Mistake
from ddp.parallel_config import ParallelConfig
from ddp.refusals import check_pairs

ROOT = Path(__file__).resolve().parent.parent


def options(strategy: str, parallel: dict[str, Any], rest: dict[str, Any]) -> TrainConfig:
    return TrainConfig(strategy=strategy, parallel=ParallelConfig(**parallel), **rest)


@pytest.mark.parametrize(
    ("ranks", "strategy", "parallel", "rest", "sentence"),
    [
        (2, "single", {}, {}, "expected 1 rank with --strategy single, got 2"),
        (2, "dp", {}, {}, "expected 1 rank with --strategy dp, got 2"),
        (1, "dp", {}, {"sync_bn": True}, "expected no --sync-bn with --strategy dp"),
        (1, "dp", {}, {"compile": "inside"}, "expected no --compile with --strategy dp, got inside"),
        (2, "ddp", {"spawn_ranks": 2}, {}, "expected --spawn-ranks with --strategy ddp-spawn only, got --strategy ddp"),
        (2, "ddp", {"sync_bn_scope": "node"}, {}, "expected --sync-bn with --sync-bn-scope node"),
        (2, "ddp", {"static_graph": True}, {"accumulate": 2}, "expected --accumulate 1 with --static-graph"),
        (2, "auto", {"static_graph": True}, {"accumulate": 2}, "expected --accumulate 1 with --static-graph"),
        (2, "ddp", {"static_graph": True, "find_unused_parameters": True}, {}, "expected --static-graph or --find"),
        (2, "ddp", {"comm_hook": "fp16"}, {"amp": "fp16"}, "got --amp fp16 and --comm-hook fp16"),
        (2, "ddp-spawn", {"comm_hook": "powersgd"}, {"amp": "fp16"}, "got --amp fp16 and --comm-hook powersgd"),
        (2, "fsdp2", {"comm_hook": "bf16"}, {}, "expected no --comm-hook with --strategy fsdp2, .* got bf16"),
        (2, "fsdp2", {"bucket_cap_mb": 5.0}, {}, "expected no --bucket-cap-mb with --strategy fsdp2"),
        (1, "dp", {"static_graph": True}, {}, "expected no --static-graph with --strategy dp"),
        (2, "fsdp2", {}, {"check_every": 5}, "expected --check-every 0 with --strategy fsdp2, .* got 5"),
        (2, "fsdp2", {}, {"channels_last": True}, "expected no --channels-last with --strategy fsdp2"),
    ],
)
def test_a_pair_is_refused_with_one_sentence(
    ranks: int, strategy: str, parallel: dict[str, Any], rest: dict[str, Any], sentence: str
) -> None:
    """T4. Breaks if --static-graph may meet --accumulate, whose first backward pass DDP then does not survive."""
    with pytest.raises(Mistake, match=sentence) as caught:
        check_pairs(options(strategy, parallel, rest), ranks)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "strategy", "parallel", "rest"),
    [
        (1, "auto", {"comm_hook": "powersgd", "static_graph": True}, {"accumulate": 2}),
        (2, "ddp", {"comm_hook": "bf16"}, {"amp": "fp16", "accumulate": 2}),
        (2, "ddp", {"comm_hook": "fp16"}, {"amp": "bf16", "channels_last": True}),
        (2, "ddp", {"comm_hook": "powersgd", "find_unused_parameters": True}, {"check_every": 5}),
        (2, "ddp-spawn", {"static_graph": True, "spawn_ranks": 2}, {}),
        (2, "ddp", {"sync_bn_scope": "node"}, {"sync_bn": True}),
        (4, "fsdp2", {}, {"sync_bn": True, "amp": "fp16", "compile": "outside", "accumulate": 2}),
        (1, "dp", {}, {"amp": "fp16", "accumulate": 2}),
    ],
)
def test_what_works_is_not_refused(ranks: int, strategy: str, parallel: dict[str, Any], rest: dict[str, Any]) -> None:
    check_pairs(options(strategy, parallel, rest), ranks)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("bucket_cap_mb", 0.0, "--bucket-cap-mb above 0, got 0.0"),
        ("powersgd_rank", 0, "--powersgd-rank of at least 1, got 0"),
        ("powersgd_start", 1, "--powersgd-start of at least 2, got 1"),
        ("spawn_ranks", 0, "--spawn-ranks of at least 1, got 0"),
    ],
)
def test_a_number_out_of_range_is_refused(field: str, value: float, sentence: str) -> None:
    with pytest.raises(Mistake, match=sentence):
        ParallelConfig(**{field: value})  # type: ignore[arg-type]


def test_the_checks_import_no_torch() -> None:
    code = "import sys, ddp.refusals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
