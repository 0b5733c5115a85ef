"""What a rank tells, and that it never fails or waits because nobody listens."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from launch.reporter import VARIABLE, Reporter, last_words, reporter


@pytest.fixture
def ear(tmp_path: Path) -> socket.socket:
    """Where the launcher would listen."""
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(str(tmp_path / "s"))
    ear.settimeout(5)
    return ear


def test_a_rank_speaks_under_its_number(tmp_path: Path, ear: socket.socket) -> None:
    speaker = reporter({VARIABLE: str(tmp_path / "s"), "RANK": "3"})
    assert speaker is not None
    speaker.tell("hello", {"more": "ü\n"})
    assert json.loads(ear.recv(1 << 16)) == {"kind": "hello", "rank": 3, "pid": os.getpid(), "more": "ü\n"}
    speaker.step(12)
    assert json.loads(ear.recv(1 << 16))["step"] == 12


@pytest.mark.parametrize("environ", [{}, {VARIABLE: "/s"}, {"RANK": "0"}, {VARIABLE: "/s", "RANK": "x"}])
def test_without_a_launcher_of_ours_nobody_speaks(environ: dict[str, str]) -> None:
    assert reporter(environ) is None


def test_nobody_who_listens_is_no_failure(tmp_path: Path, ear: socket.socket) -> None:
    speaker = Reporter(str(tmp_path / "s"), 0)
    (tmp_path / "s").rename(tmp_path / "away")
    speaker.step(1)
    speaker.words(last_words(ValueError("x")))
    (tmp_path / "away").rename(tmp_path / "s")
    speaker.step(2)
    assert json.loads(ear.recv(1 << 16))["step"] == 2  # what was said to nobody is lost, and the speaker is not
    ear.close()
    speaker.words(last_words(ValueError("x")))  # to a socket that nobody holds any more
    assert (tmp_path / "s").is_socket()


def test_a_step_is_dropped_rather_than_waited_for(tmp_path: Path, ear: socket.socket) -> None:
    speaker = Reporter(str(tmp_path / "s"), 0)
    began = time.monotonic()
    for step in range(5000):  # far more than a socket holds
        speaker.step(step)
    assert time.monotonic() - began < 5
    assert json.loads(ear.recv(1 << 16))["step"] == 0


def test_last_words_are_whole_but_not_endless(tmp_path: Path, ear: socket.socket) -> None:
    error = ValueError("the first")
    for _ in range(30):
        cause, error = error, ValueError("long " * 10**5)
        error.__cause__ = cause
    before_s = time.time()
    Reporter(str(tmp_path / "s"), 1).words(last_words(error))
    said = json.loads(ear.recv(1 << 18))
    assert (said["kind"], said["type"], len(said["message"])) == ("words", "ValueError", 2000)
    assert len(said["traceback"]) == 20
    assert max(map(len, said["traceback"])) == 500
    assert said["traceback"][-1].startswith("ValueError: long long")
    assert 0 <= said["time_s"] - before_s < 60


def test_the_end_of_a_chain_is_told_line_by_line() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise RuntimeError("two\nlines") from error
    except RuntimeError as error:
        words = last_words(error)
    assert (words.type, words.message) == ("RuntimeError", "two\nlines")
    assert "KeyError: 'first'" in words.traceback
    assert words.traceback[-2:] == ("RuntimeError: two", "lines")
