"""Who started a run, when, from which code and surroundings: record.json of its folder, without secrets."""

import getpass
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from launch import run_folder
from launch.private_files import write_json
from launch.revision import revision
from launch.secrets import mask, mask_argv, mask_environment
from launch.sites import Site

FORMAT = 1
PACKAGES = ("torch", "torchvision", "numpy", "ringmark")


def record(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    work_dir: Path,
    site: Site | None = None,
    python: str | None = None,
) -> dict[str, Any]:
    """What is worth knowing of a run's start; of the environment what an allow-list names, and no secrets anywhere."""
    return {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "user": user(),
        "host": socket.gethostname(),
        "argv": mask_argv(argv),
        "work_dir": mask(str(work_dir)),
        "python": {
            "here": sys.version.split()[0],
            "here_path": sys.executable,
            "on_the_nodes": python or sys.executable,
        },
        "versions": {name: installed(name) for name in PACKAGES},
        "git": revision(),
        "site": None if site is None else _site(site),
        "environment": mask_environment(environ),
    }


def write(run: Path, data: Mapping[str, Any]) -> None:
    """Store a record in the run's folder, readable by its owner only."""
    write_json(run / run_folder.RECORD, data)


def user() -> str | None:
    """The name of who runs this; None if the system does not know."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def installed(package: str) -> str | None:
    """A package's version, without importing it; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _site(site: Site) -> dict[str, Any]:
    data = asdict(site)
    data["setup"] = [mask(line) for line in site.setup]
    data["environment"] = {name: mask(value) for name, value in site.environment.items()}
    return data
