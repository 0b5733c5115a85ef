"""A launch as it was asked for: one JSON file that a job reads, so that no shell ever parses what a person wrote."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from launch.private_files import write_json

Mode = Literal["agent", "srun", "torchrun"]
FORMAT = 1
FILE_NAME = "spec.json"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What runs, where, and how it is watched."""

    name: str
    """Name in the queue and in the names of files."""
    script: str
    """Path of a Python script, or the name of a module."""
    arguments: tuple[str, ...] = ()
    """The script's own, byte for byte."""
    is_module: bool = False
    resumable: bool = False
    """Whether the script keeps ringmark's contract: on SIGUSR1 it saves and exits 75; started again, it goes on."""
    nodes: int = 1
    nproc_per_node: int | None = None
    """Ranks on each node; None is one for each GPU that a node was given, which may differ between nodes."""
    mode: Mode = "agent"
    """Who starts the ranks: one launcher per node, srun itself (one task per rank), or plain torchrun per node."""
    work_dir: str = "."
    """Absolute folder that the script runs in."""
    run_dir: str = "."
    """Absolute folder of the run, on a file system that all nodes see."""
    python: str = "python3"
    """Interpreter on the nodes."""
    root: str = "."
    """Absolute folder of ringmark's packages on the nodes."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the ranks beside those that the job inherits."""
    interface: str | None = None
    """Network interface between the nodes; None is the one whose address all nodes can connect to."""
    max_restarts: int = 0
    """Restarts of all ranks inside the job, after a failure."""
    hang_timeout_s: float | None = None
    """After so long without progress the ranks' stacks are shown and the launch ends; None is never."""
    stop_margin_s: float = 120.0
    """How long before the job's end its ranks are asked to save and stop."""
    go_on: Literal["never", "requeue", "follow"] = "never"
    """After exit code 75, or a failure worth another try: nothing, scontrol requeue, or a follow-up job."""
    max_attempts: int = 100
    preflight: bool = False
    """Whether doctor looks at all nodes before the ranks start, and ends the job if one is bad."""
    exclude: tuple[str, ...] = ()
    """Nodes that must not be used."""
    wrap: tuple[str, ...] = ()
    """What stands before the interpreter on the nodes, such as apptainer exec IMAGE; empty without a container."""
    srun_options: tuple[str, ...] = ()
    """Options of srun that start the container, where SLURM itself does."""


def write(spec: Spec, run_dir: Path) -> Path:
    """Store a spec in the run's folder, readable by its owner only -> the file."""
    path = run_dir / FILE_NAME
    write_json(path, {"format": FORMAT, **asdict(spec)})
    return path


def read(path: Path) -> Spec:
    """The spec in a file. Raises ValueError with a remedy if it is none, or one of another version."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = data.pop("format")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"expected the {FILE_NAME} of a run, got {path}: {error}; submit the run again") from None
    if found != FORMAT:
        raise ValueError(f"expected format {FORMAT} in {path}, got {found}; use the ringmark that wrote it")
    known = {each.name for each in fields(Spec)}
    unknown = set(data) - known
    if unknown:
        raise ValueError(f"expected the fields of a spec in {path}, got {', '.join(sorted(unknown))}; submit again")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return Spec(**values)
