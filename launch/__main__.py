"""`python -m launch` is the command `ringmark`."""

import sys

from launch.cli import console

if __name__ == "__main__":
    sys.exit(console())
