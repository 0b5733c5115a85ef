"""What is refused: damaged files when they are read, and values that would not come back when they are written."""

import enum
import json
import os
import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddp.checkpoint import CheckpointError, Content, load, newest_good, verify, write
from ddp.checkpoint_files import MANIFEST, read_manifest, render, write_file, write_manifest
from ddp.context import DistContext, process_group
from ddp.env import read_rank

FLIPS = 500


@pytest.fixture
def ctx() -> Iterator[DistContext]:
    with process_group(read_rank({}), device=torch.device("cpu"), timeout_s=20) as ctx:
        yield ctx


def content(step: int) -> Content:
    return Content({"weights": torch.arange(64.0), "step": step}, {"rng": torch.get_rng_state()[:99]}, {"epoch": 1})


@pytest.fixture
def path(tmp_path: Path, ctx: DistContext) -> Path:
    return write(tmp_path, 5, content(5), ctx)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("loaded before it was checked"))


@pytest.mark.usefixtures("nothing_is_loaded")
def test_every_flipped_byte_is_refused_and_its_file_named(path: Path) -> None:
    dice = random.Random(0)
    files = sorted(path.iterdir())
    assert [file.name for file in files] == ["MANIFEST.json", "rank-0.pt", "shared.pt"]
    for turn in range(FLIPS):
        file = files[turn % len(files)]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[dice.randrange(len(bad))] ^= dice.choice([1 << dice.randrange(8), dice.randrange(1, 256)])
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=rf"{file}: expected .* got "):
            load(path, 0)
        file.write_bytes(good)
    verify(path)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_truncated_zeroed_grown_and_absent_files_are_refused_by_name(path: Path) -> None:
    dice = random.Random(0)
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        lengths = {0, 1, len(good) // 2, len(good) - 1, *(dice.randrange(len(good)) for _ in range(40))}
        for bad in [*(good[:length] for length in lengths), bytes(len(good)), good + b"\n"]:
            file.write_bytes(bad)
            with pytest.raises(CheckpointError, match=rf"{file}: expected .* got "):
                load(path, 0)
        file.unlink()
        with pytest.raises(CheckpointError, match=rf"{file}: expected .* got: No such file"):
            load(path, 0)
        file.write_bytes(good)
    verify(path)


def test_sizes_and_hashes_are_told_as_expected_and_got(path: Path) -> None:
    shared, entry = path / "shared.pt", verify(path).files["shared.pt"]
    os.truncate(shared, 100)
    with pytest.raises(CheckpointError, match=f"expected {entry.size_bytes} bytes, got 100$"):
        verify(path)
    shared.write_bytes(bytes(entry.size_bytes))
    with pytest.raises(CheckpointError, match=f"expected sha256 {entry.sha256}, got [0-9a-f]{{64}}$"):
        verify(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "expected format 1, got 2"),
        ({"world_size": 2}, "rank-1.pt"),
        ({"files": {"../../secret": {"size_bytes": 1, "sha256": ""}}}, "got .*secret"),
        ({"step": 6}, "expected step 5 by the folder's name, got 6"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(path: Path, change: dict[str, Any], says: str) -> None:
    body = json.loads((path / MANIFEST).read_bytes())["manifest"]
    (path / MANIFEST).write_bytes(render(body | change))
    with pytest.raises(CheckpointError, match=says):
        read_manifest(path)


def test_the_newest_good_one_is_found_and_the_reasons_against_newer_ones_told(tmp_path: Path, ctx: DistContext) -> None:
    assert newest_good(tmp_path / "absent", pytest.fail) is None
    assert newest_good(tmp_path, pytest.fail) is None
    paths = [write(tmp_path, step, content(step), ctx, keep=3) for step in (9, 999_999_999, 1_000_000_000)]
    assert newest_good(tmp_path, pytest.fail) == paths[2]
    os.truncate(paths[2] / "rank-0.pt", 5)
    (paths[1] / MANIFEST).unlink()
    reports: list[str] = []
    assert newest_good(tmp_path, reports.append) == paths[0]
    assert len(reports) == 2
    assert f"{paths[2]}/rank-0.pt: expected" in reports[0]
    assert "got 5" in reports[0]
    assert f"{paths[1]}/{MANIFEST}: expected a manifest" in reports[1]
    (paths[0] / "shared.pt").unlink()
    with pytest.raises(CheckpointError, match=r"expected a good checkpoint .* got 3 that are all damaged"):
        newest_good(tmp_path, reports.append)


class Colour(enum.Enum):
    RED = 1


class Text(str):
    pass


def holds_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def with_attribute() -> torch.Tensor:
    tensor = torch.zeros(2)
    tensor.note = Path("x")  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.float64(0.5), "is a numpy.float64"),
        (np.zeros(2), "is a numpy.ndarray"),
        (Path("x"), "is a pathlib.PosixPath"),
        (Colour.RED, "Colour"),
        (defaultdict(list), "is a collections.defaultdict"),
        (frozenset([1]), "is a builtins.frozenset"),
        (torch.__version__, "TorchVersion"),
        (slice(1), "is a builtins.slice"),
        (Text("a"), "Text"),
        (print, "is a builtins.builtin_function_or_method"),
        (1 << 3000, "is an integer of 3001 bits"),
        (torch.zeros(2, device="meta"), "is a tensor without data"),
        (with_attribute(), ".note is a pathlib.PosixPath"),
        (holds_itself(), "or holds itself"),
    ],
)
def test_what_could_not_be_loaded_back_is_refused_when_written_with_its_place(
    path: Path, ctx: DistContext, value: Any, says: str
) -> None:
    good = content(6)
    for broken, place in (
        (Content({"a": [{"b": value}]}, good.own, good.info), "shared['a'][0]['b']"),
        (Content(good.shared, {"a": (1, value)}, good.info), "own['a'][1]"),
    ):
        with pytest.raises(CheckpointError) as caught:
            write(path.parent, 6, broken, ctx)
        assert place in str(caught.value)
        assert says in str(caught.value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_key_that_could_not_be_loaded_back_is_refused_too(path: Path, ctx: DistContext) -> None:
    with pytest.raises(CheckpointError, match=r"shared\['a'\]: the key .*numpy.int64"):
        write(path.parent, 6, Content({"a": {np.int64(3): 1}}, {}, {}), ctx)


@pytest.mark.parametrize("info", [{"a": (1, 2)}, {"a": float("nan")}, {"a": float("inf")}, {1: 2}, {"a": Path("x")}])
def test_info_that_json_would_change_is_refused(path: Path, ctx: DistContext, info: dict[Any, Any]) -> None:
    with pytest.raises(CheckpointError, match="expected info that"):
        write(path.parent, 6, Content({}, {}, info), ctx)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_everything_that_is_accepted_comes_back(tmp_path: Path, ctx: DistContext) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    plain = {
        "numbers": [None, True, -(1 << 2038), 0.1, float("inf"), 1j],
        "texts": {"a\0é\ud800", b"\xff\0", ("t", 1)},
        "torch": (torch.float16, torch.device("cuda:1"), torch.Size([2, 3])),
        "kinds": [OrderedDict(a=1), Counter([3, 3]), {1: {2.5: {None: 0}}}, [], (), set(), {}],
        "rng": random.Random(1).getstate(),
        "scheduler": scheduler.state_dict(),
    }
    tensors = {"model": module.state_dict(), "parameter": nn.Parameter(torch.ones(2)), "view": torch.eye(3)[:, 1]}
    shared = {"plain": plain, "tensors": tensors, "optimizer": optimizer.state_dict()}
    _, loaded, _ = load(write(tmp_path, 1, Content(shared, {}, {}), ctx), 0)
    assert loaded["plain"] == plain
    assert loaded["tensors"]["model"]._metadata == tensors["model"]._metadata  # type: ignore[attr-defined]
    for key, tensor in [*tensors["model"].items()]:  # type: ignore[union-attr]
        assert torch.equal(loaded["tensors"]["model"][key], tensor)
    assert torch.equal(loaded["tensors"]["view"], tensors["view"])  # type: ignore[arg-type]
    assert loaded["optimizer"]["state"].keys() == optimizer.state_dict()["state"].keys()


def test_a_file_that_holds_code_is_refused_though_its_hash_is_right(path: Path) -> None:
    manifest = verify(path)
    for file in ("shared.pt", MANIFEST):
        (path / file).unlink()
    manifest.files["shared.pt"] = write_file(path / "shared.pt", {"a": Colour.RED})
    write_manifest(path, manifest)
    verify(path)
    with pytest.raises(CheckpointError, match=r"shared.pt: expected what torch loads as weights only"):
        load(path, 0)
