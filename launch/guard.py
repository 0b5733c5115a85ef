"""Refuse to run with a foreign package of one of our names, such as a folder `models` where the user stands."""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ddp", "bench", "models", "slurm")


def check_not_shadowed() -> None:
    """Raise ValueError if Python would import another package than ours; call it before importing any of them."""
    for package in PACKAGES:
        found = find_spec(package)
        places = [] if found is None else [found.origin, *(found.submodule_search_locations or [])]
        homes = {Path(place).resolve() for place in places if place and place != "namespace"}
        if not homes:
            raise ValueError(
                f"expected ringmark's package {package} in {ROOT}, got none; reinstall: pip install -e {ROOT}"
            )
        foreign = [home for home in homes if not home.is_relative_to(ROOT / package)]
        if foreign:
            raise ValueError(
                f"expected ringmark's own package {package}, got {foreign[0]}, which is in the way; "
                "run from another folder, or with PYTHONSAFEPATH=1 and without that folder in PYTHONPATH"
            )


def refuse_foreign_packages() -> None:
    """End with one line and exit code 2 if another package is in the way; for entries that cannot import ours yet."""
    try:
        check_not_shadowed()
    except ValueError as error:
        print(f"ringmark: {error}", file=sys.stderr)
        sys.exit(2)
