"""Text for people: numbers with the digits they deserve, and strings from outside made harmless."""

import json
import math
import unicodedata
from typing import Any

NA = "n/a"
LONGEST = 1000
"""Characters of one string that a report shows."""


def number(value: float | None) -> str:
    """Three significant digits: 6.67, 41.2, 1,235; unknown is n/a."""
    if value is None or not math.isfinite(value):
        return NA
    size = abs(float(f"{value:.3g}"))  # rounded first: 99.99 is 100, not 100.0
    if size >= 100 or size == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def count(value: int | None) -> str:
    """A whole number with thousands separated: 11,173,962."""
    return NA if value is None else f"{value:,}"


def percent(share: float | None) -> str:
    """A share of one, in percent with one decimal: 94.3 %."""
    return NA if share is None or not math.isfinite(share) else f"{100 * share:z.1f} %"  # z: no minus before zero


def percent_range(low: float, high: float) -> str:
    """Two shares of one, in percent: 93.1 to 95.4 %."""
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def duration(seconds: float | None) -> str:
    """Seconds for people: 45.2 s, 12 min 5 s, 2 h 3 min."""
    if seconds is None or not math.isfinite(seconds):
        return NA
    whole = round(seconds)
    if whole < 60:
        return f"{number(seconds)} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def gibibytes(size_bytes: float | None) -> str:
    """Bytes as GiB: 12.3 GiB."""
    return NA if size_bytes is None else f"{number(size_bytes / 2**30)} GiB"


def plural(amount: int, noun: str) -> str:
    """1 round, 2 rounds."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def value_text(value: Any) -> str:
    """Any value of a record in one line; None is n/a."""
    if value is None:
        return NA
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def clean(text: str) -> str:
    """One line, in which control, format and surrogate characters show as escapes instead of taking effect.

    Terminals obey escape sequences, bidirectional overrides reorder what is read, and lone surrogates cannot be
    written as UTF-8. What is longer than LONGEST characters is cut, and says so.
    """
    joined = " ".join(text.split())
    shown = "".join(_visible(character) for character in joined[:LONGEST])
    left = len(joined) - LONGEST
    return shown if left <= 0 else f"{shown} ... ({left:,} more characters)"


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] != "C" and category not in ("Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as a number of milliseconds; n/a if they are unknown."""
    return NA if seconds is None else number(1e3 * seconds)
