"""What a launch's exit code says; a scheduler can act on it."""

DONE = 0
FAILED = 1
"""What a rank's own exception gives; ranks that differ where they must not."""
MISTAKE = 2
"""In the command, the site or the configuration."""
UNCERTAIN = 3
"""A comparison or a gate that the measurements do not decide."""
NON_FINITE = 5
"""The loss became infinite or not a number."""
HANG = 6
OUT_OF_MEMORY = 7
"""Of the host or of a device."""
STORAGE = 8
"""A disk that is full, gone or broken."""
CRASHED = 9
"""A node or its launcher is gone, without a rank's own code."""
STOPPED = 75
"""Stopped with a checkpoint; start again to go on. EX_TEMPFAIL of sysexits."""
INTERRUPTED = 130
TERMINATED = 143

TOLD_BY_RANKS = frozenset({MISTAKE, NON_FINITE, STOPPED, INTERRUPTED})
"""Codes of which the ranks themselves have said what they mean."""


def shell_code(code: int) -> int:
    """The code a shell shows: 128 + n for death by signal n, which Python writes as -n."""
    return 128 - code if code < 0 else code
