"""A cluster's own settings: one TOML file of slurm/sites becomes one checked `Site`."""

import difflib
import re
import sys
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

SITES_DIR = Path(__file__).resolve().parents[1] / "slurm" / "sites"
SUFFIX = ".toml"

# What may stand in a header line, by key: (allowed text, what to call it, an example).
HEADER_VALUES: Mapping[str, tuple[str, str, str]] = {
    "partition": (r"[A-Za-z0-9_][A-Za-z0-9_.,-]*", "partition names without spaces", "gpu"),
    "account": (r"[A-Za-z0-9_][A-Za-z0-9_.@-]*", "an account name without spaces", "my-project"),
    "qos": (r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "a quality of service without spaces", "normal"),
    "constraint": (r"[A-Za-z0-9_\[(][A-Za-z0-9_.,:=&|*()\[\]-]*", "a feature expression without spaces", "a100&ib"),
    "time": (r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", "a time [days-]hours:minutes:seconds", "00:30:00"),
    "mem": (r"\d+[KMGT]?", "memory of a node, such as 16G", "16G"),
    "gpu_type": (r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "a GPU type as the cluster names it", "a100"),
}
SBATCH_OPTION = re.compile(r"--([a-z][a-z-]*)(=[A-Za-z0-9_.,:@+%*&|()\[\]/=-]+)?")
# Options that are rendered from a job or a site, or that would change what submission means.
OWN_OPTIONS = frozenset(
    {"account", "array", "chdir", "constraint", "cpus-per-task", "gpus-per-node", "help", "job-name", "mem", "nodes"}
    | {"ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos", "test-only", "time", "usage"}
    | {"version", "wait", "wrap"}
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
    time: str | None = None
    """Wall-clock limit, [days-]hours:minutes:seconds."""
    mem: str | None = None
    """Memory of a node, such as 16G."""
    cpus_per_task: int = 1
    """CPUs of a node, shared by all of its ranks."""
    gpus_per_node: int = 0
    """GPUs of a node; 0 is a cluster without GPUs."""
    gpu_type: str | None = None
    """GPU type as the cluster names it."""
    python: str = field(default_factory=lambda: sys.executable)
    """Interpreter on the nodes; by default the one that submits."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before the job, as they stand: they are the site owner's."""
    sbatch_options: tuple[str, ...] = ()
    """More options of sbatch, one each, --name=value."""

    def __post_init__(self) -> None:
        for key, (pattern, expected, example) in HEADER_VALUES.items():
            value = getattr(self, key)
            if value is not None and not re.fullmatch(pattern, value, re.ASCII):
                raise ValueError(f"expected {key} as {expected}, got {value!r}; write for example {key} = {example!r}")
        for key, least in (("cpus_per_task", 1), ("gpus_per_node", 0)):
            if not least <= getattr(self, key) <= LARGEST_COUNT:
                raise ValueError(
                    f"expected {key} from {least} to {LARGEST_COUNT}, got {getattr(self, key)}; count what one node has"
                )
        if not (self.python.startswith("/") or re.fullmatch(r"[A-Za-z0-9_.-]+", self.python)):
            raise ValueError(
                f"expected python as an absolute path or a bare command, got {self.python!r}; "
                "write for example '/opt/venv/bin/python'"
            )
        for key, text in (("python", self.python), *(("setup", line) for line in self.setup)):
            if has_control_characters(text):
                raise ValueError(
                    f"expected {key} without control characters, got {text!r}; give one printable line each"
                )
        for option in self.sbatch_options:
            check_sbatch_option(option)


def has_control_characters(text: str) -> bool:
    """Whether a terminal or a shell would take any of the characters for something other than text."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


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
    if types[key] is int:
        # In Python True is an int; in a site file it is a mistake.
        right, expected = type(value) is int, "a whole number"
    elif types[key] == tuple[str, ...]:
        right, expected = isinstance(value, list) and all(isinstance(item, str) for item in value), "a list of strings"
        value = tuple(value) if isinstance(value, list) else value
    else:
        right, expected = isinstance(value, str), "a string"
    if not right:
        raise ValueError(f"expected {key} as {expected}, got {value!r}; see {SITES_DIR / 'gpu-example.toml'}")
    return value
