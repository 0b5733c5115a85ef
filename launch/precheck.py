"""What can be known to be wrong before a job waits in the queue: nobody should wait hours for a typo."""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from launch.sites import Site
from launch.slurm_text import SlurmError, partition_limits, seconds
from launch.spec import Spec


def check_program(spec: Spec) -> None:
    """Raise ValueError unless the script is there and is Python, or the module can be found; imports nothing of it."""
    if spec.is_module:
        check_module(spec)
    else:
        check_script(Path(spec.script), same_python=spec.python == sys.executable)


def check_script(script: Path, *, same_python: bool) -> None:
    """Raise ValueError unless a script can be read and, where the nodes have this very Python, compiled."""
    try:
        source = script.read_bytes()
    except OSError as error:
        raise ValueError(
            f"expected a script that can be read, got {str(script)!r}: {error.strerror}; check its path"
        ) from None
    if not same_python:
        return
    try:
        compile(source, str(script), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # ValueError of NUL bytes
        line = getattr(error, "lineno", None)
        where = f"{str(script)!r}" + (f" line {line}" if line else "")
        raise ValueError(f"expected a script that is Python, got {where}: {error.args[0]}; correct it") from None


def check_module(spec: Spec) -> None:
    """Raise ValueError if the nodes would not find the module; only where they have this very Python."""
    if spec.python != sys.executable:
        return
    path: Sequence[str] | None = [spec.work_dir, spec.root, *filter(None, sys.path)]
    name = ""
    for part in spec.script.split("."):
        name = f"{name}.{part}" if name else part
        # PathFinder alone looks without importing the packages above.
        found = PathFinder.find_spec(name, path) if part else None
        if found is None:
            raise ValueError(f"expected a module that Python can find, got {spec.script!r}: no {name!r}; install it")
        path = found.submodule_search_locations or []


def check_interpreter(site: Site) -> None:
    """Raise ValueError if the batch script's interpreter is missing here, where this machine should see it too."""
    python = site.python
    if python.startswith("/"):
        # Setup lines or modules may bring a folder that only the nodes have.
        unseen = not Path(python).parent.exists()
        if not unseen and not (os.path.isfile(python) and os.access(python, os.X_OK)):
            raise ValueError(
                f"expected python as a program that can be run, got {python!r}; correct it in the site file"
            )
    elif not (site.setup or site.modules) and shutil.which(python) is None:
        raise ValueError(f"expected python on the PATH, got {python!r}; write its absolute path into the site file")


def check_work_dir(folder: Path) -> None:
    """Raise ValueError if the nodes cannot be expected to see this folder."""
    if folder == Path("/dev/shm") or Path("/dev/shm") in folder.parents:
        raise ValueError(f"expected a run folder on a file system that the nodes see, got {folder}; choose another")


def time_warning(site: Site, time: str | None) -> str | None:
    """A sentence if the job asks for more time than its partitions give; SLURM would let it wait for ever."""
    asked = seconds(time) if time else None
    if not asked:
        return None
    try:
        limits = partition_limits(site.partition)
    except SlurmError:
        return None
    short = {name: limit for name, limit in limits.items() if limit is not None and limit < asked}
    if not short or len(short) < len(limits):
        return None
    longest = max(short.values())
    return (
        f"expected --time within the limit of partition {', '.join(short)}, {longest // 60} minutes, got {time}; "
        "the job would never start, so ask for less"
    )
