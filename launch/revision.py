"""Which code is running: the commit of this checkout."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _git(*words: str) -> str | None:
    """Output of a git command on this checkout; None outside a checkout or without git."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def revision() -> dict[str, str | bool | None]:
    """The commit of this checkout and whether files differ from it; None if that is unknown."""
    changes = _git("status", "--porcelain")
    return {"commit": _git("rev-parse", "--short=12", "HEAD"), "dirty": None if changes is None else bool(changes)}
