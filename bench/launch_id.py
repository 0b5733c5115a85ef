"""Which launch a record is of: only rounds of one launch were measured beside each other."""

import secrets
from typing import TYPE_CHECKING

from bench.record import Record

if TYPE_CHECKING:
    from ddp.context import DistContext

KEY = "launch"
"""Key of raw that holds it."""


def new_id(ctx: "DistContext") -> str:
    """Sixteen random hexadecimal digits, the same on every rank. Every rank must call this."""
    return str(ctx.gather(secrets.token_hex(8))[0])


def launch_of(record: Record) -> str | None:
    """The launch that a record was measured in; None if an older program made it, or it is damaged."""
    found = record.raw.get(KEY)
    return found if isinstance(found, str) else None
