"""How many processes the kernel has killed for memory, as the memory cgroup of this process counts them."""

from pathlib import Path

COUNTER = "oom_kill"
FILES = {"cgroup": "memory.oom_control", "cgroup2": "memory.events"}
"""Where the counter stands, by type of file system: version 1 and 2 of cgroups."""


def oom_kills(root: Path = Path("/")) -> int | None:
    """Processes killed for memory in this process's cgroup and, with version 2, below it; None if it cannot be known.

    Where that cgroup does not count, the nearest one above it does, which may have others in it. `root` is for tests.
    """
    for folder, top, name in _counters(root):
        while True:
            count = _count(folder / name)
            if count is not None:
                return count
            if folder == top:
                break
            folder = folder.parent
    return None


class OomCounter:
    """Counts from its creation on."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._start = oom_kills(root)

    def increase(self) -> int | None:
        """Processes that were killed for memory since then; None if it cannot be known."""
        now = oom_kills(self._root)
        return None if now is None or self._start is None else max(0, now - self._start)


def _counters(root: Path) -> list[tuple[Path, Path, str]]:
    """This process's memory cgroup in each version: its folder, the topmost one that can be seen, the file's name."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    paths: dict[str, str] = {}
    for number, controllers, path in groups:
        if "memory" in controllers.split(","):
            paths["cgroup"] = path
        elif number == "0" and not controllers:
            paths["cgroup2"] = path
    found = []
    for line in mounts:
        # ID parent device ROOT MOUNT_POINT options [tags] - TYPE source OPTIONS
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        shown, point = (_unescape(each) for each in fields.split()[3:5])
        # In a container only a part of the tree may be mounted; a path outside of it cannot be looked up.
        inside = Path(paths[kind])
        if ".." in inside.parts or not inside.is_relative_to(shown):
            continue
        top = root / point.lstrip("/")
        found.append((top / inside.relative_to(shown), top, FILES[kind]))
    return sorted(found, key=lambda each: each[2] == FILES["cgroup2"])  # both: the controller is with version 1


def _unescape(path: str) -> str:
    """mountinfo writes a space in a path as \\040."""
    return path.replace("\\040", " ")


def _count(path: Path) -> int | None:
    try:
        fields = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
        return int(fields[COUNTER])
    except (OSError, ValueError, KeyError):
        return None
