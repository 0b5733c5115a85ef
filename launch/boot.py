"""Starts one of ringmark's processes from this file: `python launch/boot.py agent ARGS` calls launch.agent's `entry`.

With `python -m`, a folder `launch` where the user stands would be taken for ours; and the script that runs in the end
must find its own folder first on Python's path, where now ours is.
"""

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Put ringmark first on Python's path, in place of this file's folder, and go."""
    if not sys.flags.safe_path:
        sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    importlib.import_module(f"launch.{sys.argv.pop(1)}").entry()


if __name__ == "__main__":
    main()
