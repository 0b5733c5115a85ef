"""The same Python, torch and ringmark on all nodes, and a torch that imports."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence

from launch.checks.finding import Facts, Finding, ok
from launch.revision import revision

PACKAGES = ("torch", "torchvision")
IMPORT = """
import json, time
start_s = time.perf_counter()
import torch
devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
print(json.dumps({"seconds": time.perf_counter() - start_s, "devices": devices}))
"""
WAYS = {"python": "interpreter", "commit": "ringmark's commit"}


def versions() -> dict[str, str | None]:
    """Versions by name, without importing what they are of; None for what is not installed or not known."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    try:
        state = revision()
    except subprocess.SubprocessError:  # git hangs on a slow file system
        state = {"commit": None, "dirty": None}
    found["commit"] = (
        None if state["commit"] is None else f"{state['commit']}{' with changes' if state['dirty'] else ''}"
    )
    return found


def start_import(code: str = IMPORT) -> subprocess.Popen[str]:
    """Begin to import torch in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def end_import(process: subprocess.Popen[str], timeout_s: float) -> dict[str, object]:
    """What came of it: {"seconds", "devices"}, or {"error"}."""
    try:
        output, complaint = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"error": f"it took longer than {timeout_s:g} s"}
    if process.returncode:
        last = complaint.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        return {"error": last[0][:300]}
    result: dict[str, object] = json.loads(output.splitlines()[-1])
    return result


def judge(nodes: Sequence[Facts]) -> list[Finding]:
    """Differences between the nodes, and torch missing or broken on one."""
    findings = []
    for name in nodes[0]["versions"]:
        held = {facts["node"]: facts["versions"].get(name) for facts in nodes}
        if len(set(held.values())) > 1:
            findings.append(_difference(WAYS.get(name, name), held))
        elif name == "torch" and held[nodes[0]["node"]] is None:
            sentence = "expected torch in this interpreter, got none; install it, or choose the site's python"
            findings.append(Finding(level="error", check="versions", node="", sentence=sentence))
    broken = {
        facts["node"]: facts["import"]["error"] for facts in nodes if facts["import"] and "error" in facts["import"]
    }
    for node, error in broken.items():
        sentence = f"expected torch to import, got: {error}; try python -c 'import torch' there"
        alone = len(broken) < len(nodes)
        findings.append(Finding(level="error", check="torch", node=node, sentence=sentence, bad_node=alone))
    took = [facts["import"]["seconds"] for facts in nodes if facts["import"] and "seconds" in facts["import"]]
    same = ", ".join(f"{WAYS.get(name, name)} {text}" for name, text in nodes[0]["versions"].items() if text)
    passed = f"{same}{f'; torch imports in {max(took):.1f} s' if took else ''}"
    return findings or [ok("versions", passed)]


def _difference(what: str, held: Mapping[str, str | None]) -> Finding:
    """Who has which version; a single node that differs from at least two that agree is the one to blame."""
    groups: dict[str | None, list[str]] = {}
    for node, text in held.items():
        groups.setdefault(text, []).append(node)
    few, *_, many = sorted(groups.values(), key=len)
    blamed = few[0] if len(groups) == 2 and len(few) == 1 and len(many) > 1 else ""
    parts = ", ".join(f"{text or 'none'} on {', '.join(nodes)}" for text, nodes in groups.items())
    sentence = f"expected the same {what} on all nodes, got {parts}; use one environment that all nodes see"
    return Finding(level="error", check="versions", node=blamed, sentence=sentence, bad_node=bool(blamed))
