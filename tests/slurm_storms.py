"""How often what survives does survive: `python -m tests.slurm_storms [preempted] [longer] --count 10`, one by one.

Calls tests of test_launch_preemption on one cluster, with an undisturbed training to compare with.
"""

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

from tests import test_launch_preemption as survival
from tests.slurm_cluster import Cluster, running_cluster

STORMS = {
    "preempted": survival.test_a_preempted_run_goes_on_and_ends_as_if_nothing_had_happened,
    "longer": survival.test_a_run_longer_than_its_jobs_time_goes_on_in_another,
}


def storm(name: str, count: int, cluster: Cluster, folder: Path) -> int:
    """Do it so often -> how often it went as it must."""
    place = folder / "place"
    place.mkdir()
    (place / "mine.py").write_text(survival.SLOW)
    undisturbed = survival.golden(cluster, place)
    good = 0
    for number in range(count):
        one = folder / str(number)
        one.mkdir()
        try:
            STORMS[name](cluster, place, one, undisturbed)
            good += 1
        except Exception:
            traceback.print_exc()
        print(f"{name}: {good} of {number + 1}", flush=True)
    return good


def main() -> int:
    """Print how often each went well -> 0 if it always did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(STORMS), metavar="NAME")
    parser.add_argument("--count", type=int, default=10)
    options = parser.parse_args()
    with running_cluster() as cluster:
        found = []
        for name in options.names:
            with tempfile.TemporaryDirectory(prefix="ringmark-storm-") as folder:
                found.append(storm(name, options.count, cluster, Path(folder)))
    return 0 if all(good == options.count for good in found) else 1


if __name__ == "__main__":
    sys.exit(main())
