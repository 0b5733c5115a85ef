"""Ranks x places x ways to stop: what follows a resume has the bits, and the samples, of a run that never stopped."""

from pathlib import Path
from typing import Any

import pytest

from ddp import checkpoint
from tests.resume_runs import EPOCHS, SAMPLES, STEPS_PER_EPOCH, config_of, differing, ledger, newest_step, run, stop_at

RANKS = (1, 2, 4)
PLACES = {"first step": (1, 0), "mid-epoch": (2, 0), "epoch end": (STEPS_PER_EPOCH, 0), "inside accumulation": (2, 1)}
"""Step, and micro-batch within it; 0: when the step is done."""
WAYS = ("clean stop", "SIGTERM", "SIGKILL")
OVERFLOW_AT = 3
"""The training pass whose gradient overflows: in step 2."""
STATEFUL: dict[str, Any] = {"accumulate": 2, "amp": "fp16", "checkpoint_every": 1, "optim": {"ema_decay": 0.9}}
"""Options that give a run every kind of state."""


def covers_each_epoch_once(out: Path, committed: int) -> bool:
    """Whether the steps that count, of the launch before the checkpoint and of the one after it, saw all samples."""
    before = {step: ids for step, ids in ledger(out, 0).items() if step <= committed}
    steps = before | ledger(out, 1)
    if sorted(steps) != list(range(1, EPOCHS * STEPS_PER_EPOCH + 1)) or before.keys() & ledger(out, 1).keys():
        return False
    epochs = [range(n * STEPS_PER_EPOCH + 1, (n + 1) * STEPS_PER_EPOCH + 1) for n in range(EPOCHS)]
    return all(sorted(i for step in epoch for i in steps[step]) == list(range(SAMPLES)) for epoch in epochs)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """Runs that were never stopped."""
    return {
        ranks: run(config_of(tmp_path_factory.mktemp("golden"), **STATEFUL), ranks, overflow_at=OVERFLOW_AT)
        for ranks in RANKS
    }


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_has_the_bits_and_the_samples_of_one_that_was_never_stopped(
    tmp_path: Path, golden: dict[int, list[Any]], ranks: int, place: str, way: str
) -> None:
    """T6, T7. Breaks if any item of the state is not restored, or if a sample is read twice or never."""
    step, micro_batch = PLACES[place]
    config = config_of(tmp_path, resume="auto", stop_after=step if way == "clean stop" else 0, **STATEFUL)
    act = stop_at(step, micro_batch, way)
    stopped = run(config, ranks, act, overflow_at=OVERFLOW_AT, may_die=way == "SIGKILL")
    assert all(rank is None if way == "SIGKILL" else rank["stopped"] for rank in stopped)
    committed = newest_step(tmp_path)
    assert committed in {"clean stop": (step,), "SIGTERM": (step, step + 1), "SIGKILL": (step, step - 1)}[way]
    resumed = run(config_of(tmp_path, resume="auto", **STATEFUL), ranks, overflow_at=OVERFLOW_AT)
    for rank in range(ranks):
        assert differing(resumed[rank], golden[ranks][rank]) == []
    assert golden[ranks][0]["skipped_steps"] == 1
    assert covers_each_epoch_once(tmp_path, committed)


SHARED = ("model", "optimizer", "scheduler", "scaler", "skipped_steps", "ema", "progress")
OWN = ("random", "buffers", "meter", "ema")


@pytest.mark.parametrize("item", [*(("shared", name) for name in SHARED), *(("own", name) for name in OWN)])
def test_every_item_of_the_state_is_needed(
    tmp_path: Path, golden: dict[int, list[Any]], item: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6. Breaks if an item of the state makes no difference here, so that the test above could not miss it.

    Each item in turn keeps the value it had after step 1; the run must end otherwise.
    """
    part, name = item
    for stop, folder in ((1, "first"), (4, "run")):
        config = config_of(tmp_path / folder, resume="auto", stop_after=stop, **STATEFUL)
        run(config, 2, overflow_at=OVERFLOW_AT)
    load = checkpoint.load
    first = checkpoint.find(tmp_path / "first" / "checkpoints")[0]

    def forgetful(path: Path, rank: int) -> Any:
        manifest, *state = load(path, rank)
        earlier: dict[str, Any] = dict(zip(("shared", "own"), load(first, rank)[1:], strict=True))
        kept: dict[str, Any] = dict(zip(("shared", "own"), state, strict=True))
        kept[part][name] = earlier[part][name]
        return manifest, kept["shared"], kept["own"]

    monkeypatch.setattr(checkpoint, "load", forgetful)
    resumed = run(config_of(tmp_path / "run", resume="auto", **STATEFUL), 2, overflow_at=OVERFLOW_AT)
    assert any(differing(rank, golden[2][number]) for number, rank in enumerate(resumed))


def test_powersgd_has_a_state_of_its_own(tmp_path: Path) -> None:
    """T6. Breaks if what a low-rank compression left out of a step, and adds to the next one, is not restored."""
    from ddp.parallel_config import ParallelConfig

    options: dict[str, Any] = {
        "checkpoint_every": 1,
        "resume": "auto",
        "parallel": ParallelConfig(comm_hook="powersgd", powersgd_start=2),
    }
    golden = run(config_of(tmp_path / "golden", **options), 3)
    run(config_of(tmp_path / "run", stop_after=4, **options), 3)
    resumed = run(config_of(tmp_path / "run", **options), 3)
    assert [differing(*pair) for pair in zip(resumed, golden, strict=True)] == [[], [], []]
    assert golden[0]["strategy"]
