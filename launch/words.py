"""What a piece of text can be: a terminal's, a process's, a table's."""

import re
import unicodedata
from collections.abc import Sequence

# Sequences that move a terminal's cursor, colour it, or set its title; then single characters that do something.
ESCAPES = re.compile(
    r"(\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
)
CONTROLS = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def has_control_characters(text: str) -> bool:
    """Whether a terminal or a shell would take any of the characters for something other than text."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def can_be_argument(text: str) -> bool:
    """Whether a process can be given this text: no NUL, and surrogates only where they stand for bytes."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def harmless(line: str) -> str:
    """A line as a terminal can show it, without escape sequences and control characters; tabs stay."""
    return CONTROLS.sub("", ESCAPES.sub("", line))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
