"""Which CPUs each rank of a node gets: slices that do not overlap, close to the rank's GPU. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

Core = tuple[int, ...]
"""CPUs, by number, that share one physical core."""


@dataclass(frozen=True, kw_only=True)
class CpuMap:
    """CPUs of the ranks of one node, by local rank."""

    slices: tuple[tuple[int, ...], ...]
    """CPU numbers of each rank, ascending."""
    nodes: tuple[tuple[int, ...], ...]
    """NUMA nodes that each slice touches."""
    cores: tuple[int, ...]
    """Physical cores that each slice touches."""
    gpus: tuple[str | None, ...]
    """PCI bus id of each rank's GPU, where it is known."""
    warning: str | None = None
    """What is wrong with the map, for a person; None if all is well."""

    @property
    def threads(self) -> int:
        """OMP_NUM_THREADS of every rank: physical cores of the smallest slice, at least 1."""
        return max(1, min(self.cores))

    def lines(self, first_rank: int = 0) -> list[str]:
        """A table for the terminal, one line for each rank, numbered from `first_rank`."""
        texts = [compact(cpus) for cpus in self.slices]
        width = max(map(len, texts))
        last = len(str(first_rank + len(texts) - 1))
        lines = []
        for local_rank, text in enumerate(texts):
            gpu = self.gpus[local_rank]
            line = (
                f"rank {first_rank + local_rank:<{last}}  CPUs {text:<{width}}  node {compact(self.nodes[local_rank])}"
            )
            lines.append(line + (f"  GPU {gpu}" if gpu else ""))
        return lines


def parsed(text: str) -> tuple[int, ...]:
    """Numbers of a list as the kernel writes it, such as 0-3,8. Raises ValueError for another text."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def compact(numbers: Sequence[int]) -> str:
    """The inverse of `parsed`: 0-3,8."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def plan(
    ranks: int,
    *,
    allowed: Sequence[int],
    root: Path = Path("/sys"),
    gpus: Sequence[str | None] = (),
    asked: int | None = None,
) -> CpuMap:
    """Deal the allowed CPUs to the ranks of this node, all of them, whole cores and NUMA nodes together.

    `gpus` are the PCI bus ids of the ranks' devices, where known; `asked` is how many CPUs the scheduler was asked for.
    Raises ValueError without a rank or a CPU.
    """
    if ranks < 1 or not allowed:
        raise ValueError(f"expected at least one rank and one CPU, got {ranks} and {len(allowed)}; ask for more")
    cpus = sorted(set(allowed) & set(_numbers(root / "devices/system/cpu/online") or allowed) or set(allowed))
    node_of = _nodes(cpus, root)
    by_node: dict[int, list[Core]] = {}
    for core in _cores(cpus, root):
        by_node.setdefault(node_of[core[0]], []).append(core)
    known = [*gpus, *[None] * ranks][:ranks]
    homes = _homes([_gpu_node(gpu, root) for gpu in known], by_node)
    slices = _dealt(homes, by_node)
    cores = [sum(bool(set(core) & set(cpus)) for one in by_node.values() for core in one) for cpus in slices]
    return CpuMap(
        slices=tuple(slices),
        nodes=tuple(tuple(sorted({node_of[cpu] for cpu in cpus})) for cpus in slices),
        cores=tuple(cores),
        gpus=tuple(known),
        warning=_warning(ranks, len(cpus), asked),
    )


def _warning(ranks: int, cpus: int, asked: int | None) -> str | None:
    parts = []
    if asked is not None and cpus < asked:
        parts.append(
            f"{cpus} CPUs are allowed where {asked} were asked for; "
            "give srun the same --cpus-per-task as the job, or look for a CPU binding of the site"
        )
    if cpus < ranks:
        parts.append(
            f"{cpus} CPUs for {ranks} ranks: they share them and will be slow; ask for at least {ranks} on each node"
        )
    return "; ".join(parts) or None


def _numbers(path: Path) -> tuple[int, ...]:
    try:
        return parsed(path.read_text())
    except (OSError, ValueError):  # an offline CPU, or a kernel that does not tell
        return ()


def _nodes(cpus: Sequence[int], root: Path) -> dict[int, int]:
    """NUMA node of each CPU; 0 where the kernel knows of none."""
    nodes = dict.fromkeys(cpus, 0)
    for path in (root / "devices/system/node").glob("node[0-9]*/cpulist"):
        number = int(path.parent.name.removeprefix("node"))
        nodes |= {cpu: number for cpu in _numbers(path) if cpu in nodes}
    return nodes


def _cores(cpus: Sequence[int], root: Path) -> list[Core]:
    """The CPUs, ascending, those of one physical core together."""
    left, cores = dict.fromkeys(cpus), []
    for cpu in cpus:
        if cpu in left:
            siblings = _numbers(root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            cores.append(tuple(sorted({cpu, *(other for other in siblings if other in left)})))
            for one in cores[-1]:
                del left[one]
    return cores


def _gpu_node(bus_id: str | None, root: Path) -> int | None:
    """NUMA node of a PCI device; None where it is unknown, which the kernel writes as -1."""
    if bus_id is None:
        return None
    try:
        node = int((root / "bus/pci/devices" / bus_id.lower() / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return None if node < 0 else node


def _homes(wished: Sequence[int | None], by_node: Mapping[int, Sequence[Core]]) -> list[int]:
    """A NUMA node for each rank: its GPU's if there are CPUs of it, else so that nodes are used evenly, in order."""
    nodes = sorted(by_node)
    fixed = [node if node in by_node else None for node in wished]
    free = fixed.count(None)
    if free == len(fixed) < len(nodes):
        return [nodes[rank * len(nodes) // free] for rank in range(free)]
    taken = {node: fixed.count(node) for node in nodes}
    added = dict.fromkeys(nodes, 0)
    for _ in range(free):
        emptiest = max(nodes, key=lambda node: (len(by_node[node]) / (taken[node] + added[node] + 1), -node))
        added[emptiest] += 1
    others = iter([node for node in nodes for _ in range(added[node])])
    return [next(others) if node is None else node for node in fixed]


def _dealt(homes: Sequence[int], by_node: Mapping[int, Sequence[Core]]) -> list[tuple[int, ...]]:
    """CPUs of each rank, given each rank's home."""
    cores = {home: list(cores) for home, cores in _domains(homes, by_node).items()}
    if any(sum(map(len, cores[home])) < homes.count(home) for home in cores):
        homes, cores = [0] * len(homes), {0: [core for node in sorted(by_node) for core in by_node[node]]}
    slices: list[tuple[int, ...]] = [()] * len(homes)
    for home, own in cores.items():
        ranks = [rank for rank, node in enumerate(homes) if node == home]
        for rank, cpus in zip(ranks, _split(own, len(ranks)), strict=True):
            slices[rank] = cpus
    return slices


def _domains(homes: Sequence[int], by_node: Mapping[int, Sequence[Core]]) -> dict[int, list[Core]]:
    """Cores around each home. A node without a rank joins its neighbour with fewer cores for each rank."""
    used = sorted(set(homes))
    nodes_of = {home: [home] for home in used}

    def load(home: int) -> float:
        return sum(len(by_node[node]) for node in nodes_of[home]) / homes.count(home)

    idle = [node for node in sorted(by_node) if node not in nodes_of]
    # Those at the ends have one neighbour only; what they bring counts when the others choose.
    for node in sorted(idle, key=lambda node: used[0] < node < used[-1]):
        left = max((home for home in used if home < node), default=used[0])
        right = min((home for home in used if home > node), default=used[-1])
        nodes_of[right if load(right) < load(left) else left].append(node)
    return {home: [core for node in sorted(nodes) for core in by_node[node]] for home, nodes in nodes_of.items()}


def _split(cores: Sequence[Core], parts: int) -> list[tuple[int, ...]]:
    """Cut into equal parts, of whole cores if there are enough, else of CPUs; fewer CPUs than parts are shared."""
    pieces = list(cores)
    if len(pieces) < parts:
        pieces = [(cpu,) for core in cores for cpu in core]
    if len(pieces) < parts:
        return [pieces[part % len(pieces)] for part in range(parts)]
    edges = [len(pieces) * part // parts for part in range(parts + 1)]
    return [tuple(sorted(cpu for piece in pieces[start:end] for cpu in piece)) for start, end in pairwise(edges)]


def gpu_bus_ids(environ: Mapping[str, str], root: Path = Path("/proc")) -> tuple[str | None, ...]:
    """PCI bus ids of the CUDA devices that a rank of this environment sees, in their order, without touching CUDA.

    None for a device whose place is unknown: a MIG slice, or GPUs of several models in another order than the bus's.
    """
    models: dict[str, str] = {}
    uuids: dict[str, str] = {}
    for path in sorted((root / "driver/nvidia/gpus").glob("*/information")):
        fields = dict(line.split(":", 1) for line in path.read_text(errors="replace").splitlines() if ":" in line)
        models[path.parent.name] = fields.get("Model", "").strip()
        uuids[path.parent.name] = fields.get("GPU UUID", "").strip()
    order = environ.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST" if len(set(models.values())) > 1 else "PCI_BUS_ID")
    in_order = order == "PCI_BUS_ID" or (order == "FASTEST_FIRST" and len(set(models.values())) == 1)
    devices: list[str | None] = [bus_id if in_order else None for bus_id in models]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(devices)
    found: list[str | None] = []
    for word in (word.strip() for word in visible.split(",")):
        if word.isdecimal() and int(word) < len(devices):
            found.append(devices[int(word)])
        elif word.startswith("MIG-"):
            found.append(None)
        else:
            matches = [bus_id for bus_id, uuid in uuids.items() if word.startswith("GPU-") and uuid.startswith(word)]
            if len(matches) != 1:  # CUDA sees nothing from the first device on that is not there
                break
            found.append(matches[0])
    return tuple(found)
