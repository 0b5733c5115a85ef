"""A file that grows, read line by line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CHUNK_BYTES = 1 << 20


@dataclass
class Tail:
    """A file that grows, read line by line from `offset` on."""

    path: Path
    label: str
    """What stands before each of its lines."""
    offset: int = 0
    rest: bytes = field(default=b"")

    def lines(self, *, last: bool = False) -> Iterator[str]:
        """The lines that have come since; with `last` also one without an end."""
        while chunk := self._more():
            *whole, self.rest = re.split(rb"\r\n|\n|\r(?!\Z)", self.rest + chunk)
            yield from (line.decode("utf-8", "replace") for line in whole)
        if last and self.rest:
            yield self.rest.decode("utf-8", "replace")
            self.rest = b""

    def _more(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                chunk = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return b""
        self.offset += len(chunk)
        return chunk
