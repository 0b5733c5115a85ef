"""torchrun's command line, split without importing torch: its options, ours among them, the script, the script's own.

torchrun's parser takes prefixes of its options out of the script's own arguments (`script.py --n 10` dies as
ambiguous), and it needs torch. Here all that follows the script is the script's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launch.argv import UsageError

TAKE_A_VALUE = (
    *("nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "rdzv-conf", "max-restarts"),
    *("monitor-interval", "start-method", "event-log-handler", "role", "log-dir", "redirects", "tee"),
    *("log-line-prefix-template", "local-ranks-filter", "duplicate-stdout-filters", "duplicate-stderr-filters"),
    *("node-rank", "master-addr", "master-port", "local-addr", "logs-specs", "numa-binding", "signals-to-handle"),
    "shutdown-timeout",
)
SWITCHES = ("standalone", "module", "no-python", "run-path", "virtual-local-rank", "help")
SHORT = {"-m": "module", "-r": "redirects", "-t": "tee", "-h": "help"}
OURS_TAKE_A_VALUE = ("topology", "run-dir", "verdict-dir", "hang-timeout", "preload")
OUR_SWITCHES = ("plain", "quiet", "no-pin")
OUR_SHORT = {"-j": "topology"}


@dataclass(frozen=True, kw_only=True)
class TorchrunLine:
    """A command line in parts."""

    torchrun: tuple[str, ...]
    """torchrun's options, as they were written."""
    given: Mapping[str, str] = field(default_factory=dict)
    """The same by name, such as "nproc-per-node"; a switch is "1"."""
    ours: Mapping[str, str] = field(default_factory=dict)
    """What only ringmark knows."""
    script: str = ""
    arguments: tuple[str, ...] = ()

    def argv(self) -> list[str]:
        """Arguments for torchrun's own parser, with the mark that keeps it away from the script's."""
        return [*self.torchrun, "--", self.script, *self.arguments]


def _name(word: str) -> str:
    """The full name of an option. Raises UsageError for one that is unknown or ambiguous."""
    short = {**SHORT, **OUR_SHORT}
    if word in short:
        return short[word]
    text = word.removeprefix("--").replace("_", "-")
    known = (*TAKE_A_VALUE, *SWITCHES)
    matches = [name for name in known if word.startswith("--") and name.startswith(text)]
    matches = [text] if text in (*known, *OURS_TAKE_A_VALUE, *OUR_SWITCHES) else matches
    if len(matches) == 1:
        return matches[0]
    expected = f"one of {', '.join('--' + name for name in matches)}" if matches else "an option of torchrun"
    raise UsageError(f"expected {expected}, got {word}; options of the script go behind the script")


def split(argv: Sequence[str]) -> TorchrunLine:
    """The parts of `[OPTIONS] SCRIPT [ARGUMENTS]`. Raises UsageError without a script, and for unknown options."""
    words = list(argv)
    torchrun: list[str] = []
    given: dict[str, str] = {}
    ours: dict[str, str] = {}
    while words and words[0].startswith("-") and words[0] != "--":
        word = words.pop(0)
        written = [word]
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") and len(flag) > 2:  # -t3, -j2x4, as argparse takes them
            flag, equals, value = word[:2], "=", word[2:].removeprefix("=")
        name = _name(flag)
        if name in TAKE_A_VALUE or name in OURS_TAKE_A_VALUE:
            if not equals:
                if not words:
                    raise UsageError(f"expected a value after {word}, got nothing; see ringmark run --help")
                value = words.pop(0)
                written.append(value)
        elif equals:
            raise UsageError(f"expected {flag} without a value, got {word}; leave {value!r} out")
        else:
            value = "1"
        mine = name in OURS_TAKE_A_VALUE or name in OUR_SWITCHES
        (ours if mine else given)[name] = value
        if not mine:
            torchrun += written
    if words and words[0] == "--":
        words.pop(0)
    if not words and "help" not in given:
        raise UsageError("expected a script after the options, got none; ringmark run --nproc-per-node 2 train.py")
    script = words[0] if words else ""
    line = TorchrunLine(torchrun=tuple(torchrun), given=given, ours=ours, script=script, arguments=tuple(words[1:]))
    return _with_topology(line)


def _with_topology(line: TorchrunLine) -> TorchrunLine:
    """`-j 2x4` as torchrun's own words: 2 nodes, 4 ranks on each; `-j 4` is one node."""
    text = line.ours.get("topology")
    if text is None:
        return line
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", text, re.ASCII)
    if found is None:
        raise UsageError(f"expected -j as NODESxRANKS, such as 2x4, got {text!r}; or use --nproc-per-node")
    if {"nnodes", "nproc-per-node"} & set(line.given):
        raise UsageError(f"expected -j {text} or --nnodes and --nproc-per-node, got both; leave one out")
    more = {"nnodes": found[1] or "1", "nproc-per-node": found[2]}
    words = [word for name, value in more.items() for word in (f"--{name}", value)]
    return TorchrunLine(
        torchrun=(*line.torchrun, *words),
        given={**line.given, **more},
        ours=line.ours,
        script=line.script,
        arguments=line.arguments,
    )
