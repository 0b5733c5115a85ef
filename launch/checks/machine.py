"""CPUs against what was asked for, load, and limits of the process."""

import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.checks.finding import Facts, Finding, everywhere, gib, ok
from launch.cpus import compact

LIMITS = {
    "memlock": resource.RLIMIT_MEMLOCK,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "core": resource.RLIMIT_CORE,
}
LEAST_FILES, LEAST_PROCESSES = 1024, 1024


def gather_limits() -> dict[str, int | None]:
    """Soft limits by name, memlock and core in bytes; None is unlimited."""
    soft = {name: resource.getrlimit(number)[0] for name, number in LIMITS.items()}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in soft.items()}


def gather(root: Path = Path("/")) -> dict[str, object]:
    """CPUs, load and limits of this process; `root` is where proc and sys are."""
    try:
        pattern: str | None = (root / "proc/sys/kernel/core_pattern").read_text().strip()
    except OSError:
        pattern = None
    return {
        "cpus": sorted(os.sched_getaffinity(0)),
        "online_cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "limits": gather_limits(),
        "core_pattern": pattern,
        "rdma": any((root / "sys/class/infiniband").glob("*")),
    }


def judge(nodes: Sequence[Facts], asked: int | None) -> list[Finding]:
    """CPUs of each node. `asked` is how many of each the job asked for, None if nobody knows."""
    found: dict[str, list[Finding]] = {}
    for facts in nodes:
        own, allowed = found.setdefault(facts["node"], []), facts["cpus"]
        if asked is not None and len(allowed) < asked:
            sentence = (
                f"expected {asked} CPUs as asked for, got {len(allowed)} ({compact(allowed)}); "
                "give srun the same --cpus-per-task as the job, or look for a CPU binding of the site"
            )
            own.append(Finding(level="error", check="CPUs", node=facts["node"], sentence=sentence))
    counts = sorted({len(facts["cpus"]) for facts in nodes})
    text = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
    return everywhere(nodes, found, ok("CPUs", f"{text} of each node"))


def judge_load(nodes: Sequence[Facts]) -> list[Finding]:
    """Whether somebody else uses the CPUs."""
    found: dict[str, list[Finding]] = {}
    for facts in nodes:
        own, online = found.setdefault(facts["node"], []), facts["online_cpus"]
        if online is not None and facts["load"] > online:
            sentence = (
                f"expected a load below its {online} CPUs, got {facts['load']:.1f}; "
                "see with top who works there besides this job"
            )
            own.append(Finding(level="warning", check="load", node=facts["node"], sentence=sentence))
    highest = max(facts["load"] for facts in nodes)
    return everywhere(nodes, found, ok("load", f"at most {highest:.1f} in the last minute"))


def judge_limits(nodes: Sequence[Facts]) -> list[Finding]:
    """Limits that ranks run into, or that make a crash costly."""
    found = {
        facts["node"]: [
            Finding(level="warning", check="limits", node=facts["node"], sentence=sentence) for sentence in _low(facts)
        ]
        for facts in nodes
    }
    return everywhere(nodes, found, ok("limits", "open files, processes, locked memory and core files"))


def _low(facts: Facts) -> list[str]:
    limits: Mapping[str, int | None] = facts["limits"]
    files, processes, locked, core = (limits[name] for name in ("nofile", "nproc", "memlock", "core"))
    sentences = []
    if files is not None and files < LEAST_FILES:
        sentences.append(
            f"expected at least {LEAST_FILES} open files, got {files}; "
            f"raise it with ulimit -n, since ranks and loaders need a few each"
        )
    if processes is not None and processes < LEAST_PROCESSES:
        sentences.append(
            f"expected at least {LEAST_PROCESSES} processes and threads, got {processes}; "
            f"raise it with ulimit -u, since each rank has dozens of threads"
        )
    if locked is not None and facts["rdma"]:
        sentences.append(
            f"expected unlimited locked memory for InfiniBand, got {gib(locked)}; "
            "set ulimit -l unlimited for the scheduler's daemon (LimitMEMLOCK=infinity)"
        )
    if core != 0 and facts["core_pattern"] and not facts["core_pattern"].startswith(("|", "/")):
        sentences.append(
            f"expected no core files in the working folder, got {'any size' if core is None else gib(core)} allowed; "
            "set ulimit -c 0, or each rank that crashes writes its whole memory there"
        )
    return sentences
