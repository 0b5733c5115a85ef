"""What a script gets from the job that runs it: its arguments, and an environment of its own."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.member import arguments_of, take_environment
from launch.spec import Spec

ROOT = "/opt/ringmark"


def spec(**more: Any) -> Spec:
    return Spec(**{"name": "x", "script": "/home/me/s.py", "root": ROOT} | more)


@pytest.mark.parametrize(
    ("attempt", "resumable", "words", "added"),
    [
        (1, True, ("--lr", "1"), ("--resume", "auto")),
        (5, True, (), ("--resume", "auto")),
        (0, True, ("--lr", "1"), ()),
        (1, False, ("--lr", "1"), ()),
        (1, True, ("--resume", "/c/step-000000007"), ()),
        (1, True, ("--resume=auto", "--lr", "1"), ()),
        (1, True, ("--resume-never",), ("--resume", "auto")),
    ],
)
def test_a_later_attempt_goes_on_unless_it_is_told_how(
    attempt: int, resumable: bool, words: tuple[str, ...], added: tuple[str, ...]
) -> None:
    assert arguments_of(spec(arguments=words, resumable=resumable), attempt) == (*words, *added)


def taken(monkeypatch: pytest.MonkeyPatch, spec: Spec, **before: str) -> tuple[dict[str, str], list[str]]:
    """The environment and sys.path after they were taken from what the batch script needed."""
    monkeypatch.setattr(sys, "path", [ROOT, "/usr/lib/python3", ROOT, "/site"])
    environ: Any = dict(before)
    take_environment(spec, environ)
    return environ, sys.path


def test_a_persons_script_sees_nothing_of_ringmarks_own_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([ROOT, "", "/mine", ROOT + "/more"]), "A": "job's"}
    environ, path = taken(monkeypatch, spec(environment={"A": "theirs", "B": "b,c"}), **before)
    assert environ == {"PYTHONPATH": os.pathsep.join(["/mine", ROOT + "/more"]), "A": "theirs", "B": "b,c"}
    assert path == [ROOT, "/usr/lib/python3", "/site"]  # the first is the folder of what started us


@pytest.mark.parametrize("before", [{"PYTHONPATH": ROOT}, {"PYTHONPATH": ""}, {}])
def test_without_paths_of_their_own_there_is_no_variable(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str]
) -> None:
    assert taken(monkeypatch, spec(), **before)[0] == {}


def test_a_persons_own_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"PYTHONPATH": "/theirs", "PYTHONSAFEPATH": "1"}
    assert taken(monkeypatch, spec(environment=own), PYTHONPATH=ROOT)[0] == own


def test_ringmarks_own_training_keeps_what_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"PYTHONSAFEPATH": "1", "PYTHONPATH": ROOT}
    own = spec(script="launch.train", is_module=True, environment={"A": "a"})
    environ, path = taken(monkeypatch, own, **before)
    assert environ == before | {"A": "a"}
    assert path.count(ROOT) == 2
    another = spec(script=str(Path("/home/me/launch.train")))
    assert taken(monkeypatch, another, **before)[0] == {}
