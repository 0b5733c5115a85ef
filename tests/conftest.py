"""What all tests share. Imports nothing heavy, and above all no torch: see below."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.slurm_cluster import Cluster

# One thread per process, set before torch is imported: the ranks of these tests are forked from this process.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure() -> None:
    """Hear signals as in a terminal, also where the tests run behind nohup or in the background of a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: sockets live in it."""
    from tests.launches import temporary_folder

    found = temporary_folder()
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.fixture(scope="module")
def slurm_cluster() -> Iterator["Cluster"]:
    """A cluster for the tests of one module, which carry `xdist_group("slurm")`."""
    from tests.slurm_cluster import missing_reason, running_cluster

    reason = missing_reason()
    if reason:
        # A skip that nobody reads is how a test dies: where it must run, it fails.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with running_cluster() as cluster:
        yield cluster
