"""A cluster's own settings: one TOML file of slurm/sites becomes one checked `Site`."""

import difflib
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from launch.containers import check_container
from launch.secrets import is_secret
from launch.words import can_be_argument, has_control_characters

SITES_DIR = Path(__file__).resolve().parents[1] / "slurm" / "sites"
SUFFIX = ".toml"

# What may stand in a header line, by key: (allowed text, what to call it, an example).
HEADER_VALUES: Mapping[str, tuple[str, str, str]] = {
    "partition": (r"[A-Za-z0-9_][A-Za-z0-9_.,-]*", "partition names without spaces", "gpu"),
    "account": (r"[A-Za-z0-9_][A-Za-z0-9_.@-]*", "an account name without spaces", "my-project"),
    "qos": (r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "a quality of service without spaces", "normal"),
    "constraint": (r"[A-Za-z0-9_\[(][A-Za-z0-9_.,:=&|*()\[\]-]*", "a feature expression without spaces", "a100&ib"),
    "reservation": (r"[A-Za-z0-9_][A-Za-z0-9_.,-]*", "a reservation's name without spaces", "course-5"),
    "time": (r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", "a time [days-]hours:minutes:seconds", "00:30:00"),
    "mem": (r"\d+[KMGT]?", "memory of a node, such as 16G", "16G"),
    "gpu_type": (r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "a GPU type as the cluster names it", "a100"),
    "exclude": (r"[A-Za-z0-9][A-Za-z0-9_.,\[\]-]*", "nodes with commas between them, or ranges", "n3,rack1-[4-6]"),
    "interface": (r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,14}", "a network interface's name", "ib0"),
    "gpus_syntax": (r"gpus-per-node|gres", "gpus-per-node or gres", "gres"),
    "container": (r"none|apptainer|enroot", "none, apptainer or enroot", "apptainer"),
}
LONGEST_VALUE = 1000
MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+/:-]*", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# Whoever starts the ranks sets these; another value would only take ranks apart.
OWN_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_|)(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|PYTHONSAFEPATH"
    r"|(SLURM|SLURMD|SBATCH|SRUN|PMI|PMI2|PMIX)_\w+"
)
SBATCH_OPTION = re.compile(r"--([a-z][a-z-]*)(=[A-Za-z0-9_.,:@+%*&|()\[\]/=-]+)?")
# Options that are rendered from a job or a site, or that would change what submission means.
OWN_OPTIONS = frozenset(
    {"account", "array", "chdir", "constraint", "cpus-per-task", "dependency", "exclude", "export"}
    | {"gpus", "gpus-per-node", "gres", "help", "job-name", "mem", "no-requeue", "nodes", "ntasks"}
    | {"ntasks-per-node", "open-mode", "output", "error", "parsable", "partition", "qos", "requeue"}
    | {"reservation", "test-only", "time", "usage", "version", "wait", "wrap"}
)
LARGEST_COUNT = 4096


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a cluster wants to be told. None is left out of the job, so that the cluster's own default holds."""

    partition: str | None = None
    """Partition, or several with commas."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features, such as a100&ib."""
    reservation: str | None = None
    """Nodes set aside under this name."""
    exclude: str | None = None
    """Nodes that must not be used, with commas between them."""
    time: str | None = None
    """Wall-clock limit, [days-]hours:minutes:seconds."""
    mem: str | None = None
    """Memory of a node, such as 16G."""
    cpus_per_task: int | None = None
    """CPUs of a node, shared by all of its ranks."""
    gpus_per_node: int = 0
    """GPUs of a node; 0 is a cluster without GPUs."""
    gpu_type: str | None = None
    """GPU type as the cluster names it."""
    gpus_syntax: str = "gpus-per-node"
    """How GPUs are asked for: --gpus-per-node=N, or --gres=gpu:N where a cluster knows only that."""
    python: str = field(default_factory=lambda: sys.executable)
    """Interpreter on the nodes; by default the one that submits."""
    modules: tuple[str, ...] = ()
    """Environment modules to load, in this order."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before the job, as they stand: they are the site owner's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the ranks, byte for byte."""
    interface: str | None = None
    """Network interface between the nodes, such as ib0."""
    container: str = "none"
    """What runs the ranks inside an image: none, apptainer, or enroot (SLURM's pyxis options)."""
    container_image: str | None = None
    """The image: a file, or what the container program takes for one."""
    container_python: str = "python3"
    """Interpreter inside the image; `python` is then that of the batch script, outside it."""
    container_binds: tuple[str, ...] = ()
    """More folders to be seen inside, /from or /from:/to; those of the run and the script always are."""
    stop_margin_s: int = 120
    """How long before the time limit the ranks are asked to save and stop."""
    sbatch_options: tuple[str, ...] = ()
    """More options of sbatch, one each, --name=value."""

    def __post_init__(self) -> None:
        for key, (pattern, expected, example) in HEADER_VALUES.items():
            value = getattr(self, key)
            if value is not None and not (len(value) <= LONGEST_VALUE and re.fullmatch(pattern, value, re.ASCII)):
                raise ValueError(f"expected {key} as {expected}, got {value!r}; write for example {key} = {example!r}")
        for key, least in (("cpus_per_task", 1), ("gpus_per_node", 0), ("stop_margin_s", 0)):
            count = getattr(self, key)
            if count is not None and not least <= count <= LARGEST_COUNT:
                raise ValueError(
                    f"expected {key} from {least} to {LARGEST_COUNT}, got {count}; give such a whole number"
                )
        for key in ("python", "container_python"):
            check_python(key, getattr(self, key))
        for line in self.setup:
            if has_control_characters(line):
                raise ValueError(
                    f"expected setup without control characters, got {line!r}; give one printable line each"
                )
        for name in self.modules:
            if not MODULE.fullmatch(name):
                raise ValueError(
                    f"expected modules as `module load` names them, got {name!r}; write for example 'cuda/12'"
                )
        check_environment("[environment]", self.environment)
        check_container(self.container, self.container_image, self.container_binds)
        for option in self.sbatch_options:
            check_sbatch_option(option)


def check_python(key: str, python: str) -> None:
    """Raise ValueError unless `python` names one interpreter and nothing else."""
    if not (python.startswith("/") or re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", python, re.ASCII)):
        raise ValueError(
            f"expected {key} as an absolute path or a bare command, got {python!r}; "
            "write for example '/opt/venv/bin/python'"
        )
    if has_control_characters(python):
        raise ValueError(f"expected {key} without control characters, got {python!r}; rename the folder")


def check_environment(where: str, environment: Mapping[str, str]) -> None:
    """Raise ValueError for a variable that no process can be given, that ringmark sets itself, or that is a secret."""
    for name, value in environment.items():
        if not VARIABLE.fullmatch(name) or OWN_VARIABLES.fullmatch(name):
            raise ValueError(
                f"expected in {where} a variable that ringmark and SLURM do not set, got {name!r}; leave it out"
            )
        if is_secret(name, value):
            raise ValueError(
                f"expected no secrets in {where}, which are written down, got {name}; "
                f"export it in your shell and add --keep-env {name}"
            )
        if not can_be_argument(value):
            raise ValueError(
                f"expected in {where} a value that a process can be given, got {name}={value!r}; change it"
            )


def check_sbatch_option(option: str) -> None:
    """Raise ValueError unless `option` is one more option of sbatch that does not restate one of ours."""
    match = SBATCH_OPTION.fullmatch(option)
    if not match:
        raise ValueError(
            f"expected sbatch_options as --name or --name=value without spaces or quotes, got {option!r}; "
            "write for example '--exclusive'"
        )
    if match[1] in OWN_OPTIONS:
        raise ValueError(
            f"expected sbatch_options that ringmark does not set, got {option!r}; "
            "use the key of the same name, or the flag of `ringmark submit`"
        )


def site_names() -> tuple[str, ...]:
    """Names of the files in slurm/sites, sorted."""
    return tuple(sorted(path.stem for path in SITES_DIR.glob("*" + SUFFIX)))


def load_site(name_or_path: str) -> Site:
    """The site of that name in slurm/sites, or of that TOML file. Raises ValueError naming file, key and remedy."""
    path = find_site(name_or_path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"expected a readable site file, got {path}: {error.strerror}; check its permissions"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"expected TOML in {path}, got {error}; compare with {SITES_DIR / 'gpu-example.toml'}"
        ) from None
    try:
        return Site(**{key: checked(key, value) for key, value in table.items()})  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def find_site(name_or_path: str) -> Path:
    """The file that a name or a path means. Raises ValueError if it is not there."""
    is_path = "/" in name_or_path or name_or_path.endswith(SUFFIX)
    path = Path(name_or_path).expanduser() if is_path else SITES_DIR / f"{name_or_path}{SUFFIX}"
    if not path.is_file():
        names = site_names()
        close = difflib.get_close_matches(name_or_path, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"expected --site as one of {', '.join(names)} or a path to a {SUFFIX} file, got {name_or_path!r}; "
            f"{hint}add {SITES_DIR}/<name>{SUFFIX}"
        )
    return path


def checked(key: str, value: object) -> object:
    """`value` as the field `key` stores it. Raises ValueError for an unknown key or a value of another type."""
    types = {each.name: each.type for each in fields(Site)}
    if key not in types:
        close = difflib.get_close_matches(key, types, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "remove it"
        raise ValueError(f"expected keys among {', '.join(types)}, got {key!r}; {hint}")
    if types[key] in (int, int | None):
        # In Python True is an int; in a site file it is a mistake.
        right, expected = type(value) is int, "a whole number"
    elif types[key] == Mapping[str, str]:
        right = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        expected = "a table of strings"
    elif types[key] == tuple[str, ...]:
        right, expected = isinstance(value, list) and all(isinstance(item, str) for item in value), "a list of strings"
        value = tuple(value) if isinstance(value, list) else value
    else:
        right, expected = isinstance(value, str), "a string"
    if not right:
        raise ValueError(f"expected {key} as {expected}, got {value!r}; see {SITES_DIR / 'gpu-example.toml'}")
    return value
