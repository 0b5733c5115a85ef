"""Plug-ins: one file of a package is one thing, and the file's name is its name. Nothing is registered anywhere."""

import difflib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ddp.mistake import Mistake


def names(package: str) -> list[str]:
    """The names that a package offers, sorted: its files, without those that start with an underscore."""
    spec = find_spec(package)
    assert spec is not None, package
    folders = spec.submodule_search_locations or []
    files = (path for folder in folders for path in Path(folder).glob("*.py"))
    return sorted(path.stem.replace("_", "-") for path in files if not path.stem.startswith("_"))


def unknown(kind: str, name: str, known: list[str], remedy: str) -> Mistake:
    """The error for a name that does not exist, with the nearest ones that do."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else remedy
    shown = ", ".join(known) if len(known) <= 12 else f"one of {len(known)} names"
    return Mistake(f"expected a {kind} ({shown}), got {name!r}; {hint}")


def find(package: str, name: str, *, kind: str) -> ModuleType:
    """Import the file of that name. Raises Mistake with the names that exist if there is none."""
    known = names(package)
    if name not in known:
        raise unknown(kind, name, known, f"add {package.replace('.', '/')}/{name}.py or choose one")
    return import_module(f"{package}.{name.replace('-', '_')}")
