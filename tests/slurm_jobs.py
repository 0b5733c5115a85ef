"""Runs that `ringmark submit` starts on a test's cluster, and what became of them."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import attempts, run_folder, verdict
from tests.launches import facts
from tests.slurm_cluster import FINAL_STATES, Cluster

ROOT = Path(__file__).resolve().parent.parent
SITE = 'partition = "debug"\ntime = "00:05:00"\ncpus_per_task = 2\ngpus_per_node = 2\n'


@dataclass(frozen=True)
class Run:
    """One run on the cluster."""

    cluster: Cluster
    folder: Path

    @property
    def job_ids(self) -> list[str]:
        return [job.job_id for job in run_folder.jobs(self.folder)]

    def wait(self, timeout_s: float = 100) -> dict[str, str]:
        """Fields of its last job, once that has ended."""
        return self.cluster.wait_for(self.job_ids[-1], timeout_s)

    def wait_until_over(self, timeout_s: float) -> None:
        """Until it is done, or none of its jobs can go on."""
        deadline = time.monotonic() + timeout_s
        while not (self.folder / run_folder.DONE).exists() and time.monotonic() < deadline:
            if self.cluster.show_job(self.job_ids[-1])["JobState"] in FINAL_STATES:
                time.sleep(1)
                if self.cluster.show_job(self.job_ids[-1])["JobState"] in FINAL_STATES:
                    return
            time.sleep(0.3)

    @property
    def output(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("job-*.out")))

    @property
    def attempts(self) -> list[attempts.Attempt]:
        return attempts.read(self.folder)[0]

    def verdict(self, attempt: int = 0) -> verdict.Verdict:
        return verdict.read(self.folder / "attempts" / str(attempt) / verdict.FILE_NAME)

    def facts(self) -> list[dict[str, Any]]:
        """What the ranks of mode `show` of tests/launched.py found, by rank."""
        return [fact for _, fact in sorted(facts(self.output).items())]


def ringmark(cluster: Cluster, *words: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    """A command of ringmark's, as a person gives it."""
    environment = {**os.environ, **cluster.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-m", "launch", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=110, check=False
    )  # fmt: skip


def submit(cluster: Cluster, folder: Path, *words: str, **more: str) -> Run:
    """Submit `words` with a site of two GPUs per node; `folder` holds the runs."""
    site = folder / "site.toml"
    if not site.exists():
        site.write_text(SITE)
    before = set((folder / "runs").glob("*"))
    done = ringmark(cluster, "submit", "--site", str(site), "--run-dir", str(folder / "runs"), *words, **more)
    assert done.returncode == 0, done.stderr
    (run,) = set((folder / "runs").glob("*")) - before
    return Run(cluster, run)
