"""Flags to frozen dataclasses and back: the only file that imports the command-line library."""

import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from itertools import takewhile
from typing import Any, TypeVar, get_args

Config = TypeVar("Config")


MISTAKE = 2
"""Exit code of a mistake in the command or the data."""


class UsageError(Exception):
    """A mistake in the command, already in one sentence for the person who made it."""


def _parts(kind: type[int] | type[float] | type[str], text: str) -> tuple[float | str, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        expected = "whole numbers separated by commas, such as 1,2,4"
        if kind is float:
            expected = "numbers separated by commas, such as 0.5,0.75"
        raise ValueError(f"expected {expected}, got {text!r}") from None


ALIASES = {"--pretrained": "--weights"}
"""Other words for flags, by which people look for them."""


def _renamed(word: str) -> str:
    flag, equals, value = word.partition("=")
    return ALIASES.get(flag, flag) + equals + value


def _one_line(box: str) -> str:
    """The sentences of tyro's error boxes, without frames, the advice to read the help, and line breaks."""
    lines = [re.sub(r"[│╭╮╰╯─]", " ", line).strip() for line in box.splitlines()]
    titles = ("Value error", "Invalid choice", "Unrecognized options", "Missing argument", "Required options")
    kept = [line for line in lines if line and line not in titles and not line.startswith("For full helptext")]
    if kept and kept[0].startswith("Missing from "):
        missing = [line.split()[0] for line in takewhile(lambda line: not line.startswith("Unrecognized"), kept)]
        return f"expected {' and '.join(word for word in missing if word.startswith('--'))} as well"
    text = re.sub(r"\s+", " ", " ".join(kept)).removeprefix("Error parsing ")
    text = re.sub(r"^[\w.]+: (?=expected )", "", text)  # where in our dataclasses a check has spoken
    text = re.sub(r" Perhaps you meant: (--[\w-]+).*", r"; did you mean \1?", text)
    return text.partition(" Argument helptext:")[0]


def parse(kind: type[Config], argv: Sequence[str], *, prog: str, description: str) -> Config:
    """A dataclass from flags. Nested dataclasses are flat on the command line; the string under a field is its help.

    Raises UsageError for flags that do not fit, SystemExit(0) after --help.
    """
    import tyro
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def comma_separated(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kind, *rest = get_args(info.type) or (None,)
        if kind not in (int, float, str) or rest != [Ellipsis]:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="NAME,NAME,..." if kind is str else "N,N,...",
            instance_from_str=lambda parts: _parts(kind, parts[0]),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    words = [_renamed(word) for word in argv]
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(
                kind,
                prog=prog,
                description=description,
                args=words,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=registry,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{_one_line(complaint.getvalue())} (see {prog} --help)") from None


def _flags(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, tuple):
        return [flag, ",".join(map(str, value))]
    return [flag, str(value)]


def to_argv(config: Any) -> list[str]:
    """The shortest flags from which `parse` makes this dataclass again: those that differ from their defaults."""
    flags: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flags += to_argv(value)
        elif value != field.default:
            flags += _flags(field.name, value)
    return flags


def fail(message: object) -> int:
    """Print one line for the person at the terminal; returns the exit code of a mistake in the command."""
    print(f"ringmark: {message}", file=sys.stderr)
    return MISTAKE
