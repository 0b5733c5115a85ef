"""`ringmark submit --preflight` on a real SLURM cluster: doctor looks at the nodes, and a bad one ends the job."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.slurm_cluster import Cluster
from tests.slurm_jobs import Run, submit

pytestmark = pytest.mark.xdist_group("slurm")
WITHOUT_GPUS = 'partition = "debug"\ntime = "00:05:00"\ncpus_per_task = 2\n'


def start(cluster: Cluster, folder: Path, *options: str) -> tuple[Run, dict[str, str], dict[str, Any]]:
    """A script that leaves a file, behind a look at its nodes -> its run, its job and what doctor found."""
    (folder / "s.py").write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n")
    run = submit(cluster, folder, "--preflight", *options, "--", "run", str(folder / "s.py"))
    job = run.wait()
    return run, job, json.loads((run.folder / "doctor.json").read_text())


def test_nodes_without_the_gpus_that_were_asked_for_start_nothing(slurm_cluster: Cluster, tmp_path: Path) -> None:
    """Two on each node by the site, and by the cluster, which has none in truth."""
    run, job, report = start(slurm_cluster, tmp_path, "--nodes", "2")
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "9:0"), run.output
    errors = [finding for finding in report["findings"] if finding["level"] == "error"]
    assert [facts["node"] for facts in report["nodes"]] == ["n1", "n2"]
    assert [(finding["check"], finding["node"]) for finding in errors] == [("GPUs", "")]  # none is worse than another
    assert report["exclude"] == ""
    assert "expected 2 GPUs as requested, got 0" in run.output
    assert run.output.endswith("ringmark: nothing was started\n")  # nothing to exclude
    assert not (tmp_path / "ran").exists()
    assert (run.attempts, (run.folder / "attempts").exists()) == ([], False)


def test_a_good_node_runs_what_was_asked_for(slurm_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(WITHOUT_GPUS)
    run, job, report = start(slurm_cluster, tmp_path, "--nodes", "1", "--nproc-per-node", "1")
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), run.output
    assert [facts["node"] for facts in report["nodes"]] == [job["NodeList"]]
    assert "error" not in {finding["level"] for finding in report["findings"]}
    assert (tmp_path / "ran").exists()
    assert (run.folder / "DONE").exists()
    assert [attempt.code for attempt in run.attempts] == [0]
