"""What a check says of a node, and what all checks share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Facts = Mapping[str, Any]
"""What one node told of itself: JSON, as launch/doctor_node.py gathers it; None is what it could not find out."""
Level = Literal["error", "warning", "ok"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or that was looked at and is fine."""

    level: Level
    check: str
    """Name of the check, such as disk."""
    node: str
    """Name of the node, or of several with commas; empty if it is about all of them."""
    sentence: str
    """What was expected, what was found, what to do."""
    bad_node: bool = False
    """Whether the node itself is broken, so that a job is better off without it."""


def ok(check: str, sentence: str) -> Finding:
    """All nodes passed a check."""
    return Finding(level="ok", check=check, node="", sentence=sentence)


def everywhere(nodes: Sequence[Facts], of_one: Mapping[str, Sequence[Finding]], passed: Finding) -> list[Finding]:
    """Findings of all nodes, by node; `passed` if there is none.

    What all nodes alike have is said once, and is the fault of none.
    """
    merged: list[Finding] = []
    everything = [finding for found in of_one.values() for finding in found]
    for finding in everything:
        alike = [other for other in everything if (other.level, other.sentence) == (finding.level, finding.sentence)]
        if len(alike) == len(nodes) > 1:
            finding = Finding(level=finding.level, check=finding.check, node="", sentence=finding.sentence)
        if finding not in merged:
            merged.append(finding)
    return merged or [passed]


def gib(size_bytes: int) -> str:
    """A size for a person, in GiB or, below a tenth of one, in MiB."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 0.1 * 2**30 else f"{size_bytes / 2**20:.0f} MiB"
