"""Two hosts by torchrun's own static rendezvous: when the cable is pulled, both sides end and say why."""

import os
import time
from pathlib import Path

import pytest

from launch.verdict import read
from tests.launches import LAUNCHER, environment, start
from tests.launches import SCRIPT as SUM
from tests.ports import free_ports
from tests.two_hosts import missing_reason, two_hosts

TIMEOUT_S = 6
"""Of the process group."""
PORT = "29500"
SCRIPT = f"""
import os, time
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist

dist.init_process_group("gloo", timeout=timedelta(seconds={TIMEOUT_S}))
for step in range(100000):
    total = torch.ones(1)
    dist.all_reduce(total)
    assert int(total) == 2
    Path(f"step-{{os.environ['RANK']}}").touch()
    time.sleep(0.05)
"""


def test_a_pulled_cable_ends_both_sides_with_a_reason(tmp_path: Path) -> None:
    reason = missing_reason()
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    (tmp_path / "steps.py").write_text(SCRIPT)
    with two_hosts() as hosts:
        processes = []
        for rank, host in enumerate(hosts):
            meeting = ("--nnodes", "2", "--node-rank", str(rank), "--master-addr", hosts[0].address)
            words = (*meeting, "--master-port", PORT, "--run-dir", f"run-{rank}", "--no-pin", "steps.py")
            own = environment(tmp_path)
            log = (tmp_path / f"said-{rank}").open("w")
            processes.append(host.run([*LAUNCHER, *words], cwd=tmp_path, env=own, stdout=log, stderr=log))
        deadline = time.monotonic() + 60
        while not (tmp_path / "step-1").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        hosts[1].link_down()
        pulled = time.monotonic()
        try:
            codes = [process.wait(timeout=60) for process in processes]
            after_s = time.monotonic() - pulled
        finally:
            for process in processes:
                process.kill()
                process.wait()
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    assert codes == [6, 6], said
    assert after_s <= TIMEOUT_S + 15
    for rank in range(2):
        verdict = read(tmp_path / f"run-{rank}" / "verdict.json")
        assert verdict.code == codes[rank]
        assert verdict.sentence.startswith(f"rank {rank} waited in vain for others: ")
        assert f"Timed out waiting {TIMEOUT_S * 1000}ms" in verdict.sentence
        assert any("steps.py" in line for line in verdict.lines)
        assert f"ringmark: {verdict.lines[0]}" in said[rank]


def test_two_launchers_that_meet_by_torchs_means_are_both_done(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    meeting = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--no-pin")
    launches = [start(tmp_path, *meeting, "--node-rank", str(rank), SUM, "sum") for rank in range(2)]
    ends = [launch.communicate(timeout=100) for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], ends
    assert [out.count('"sum": 1') for out, _ in ends] == [1, 1]
