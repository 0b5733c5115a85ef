"""NVML's counters through the real pynvml, with a library that stands in for the driver's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare import read_blocks
from bench.gpu_counters import by_uuid
from tests.launches import ROOT

READ = """
import json
from bench.gpu_counters import by_uuid
from bench.guards import Watch, between, contention
import torch
watch = Watch(torch.device("cpu"))
watch._gpu = by_uuid("1234")
before = watch.read()
found = between(before, watch.read()) | {"node": 0}
print(json.dumps([found, contention([found]), by_uuid("5678") is None]))
"""


@pytest.mark.parametrize("driver", ["new", "old"])
def test_counters_of_a_gpu_are_read_and_judged(tmp_path: Path, driver: str) -> None:
    source, library = ROOT / "tests" / "stand_in_nvml.c", tmp_path / "libnvidia-ml.so.1"
    old = ["-DOLD_DRIVER"] if driver == "old" else []
    subprocess.run(["cc", "-shared", "-fPIC", *old, "-o", str(library), str(source)], check=True, timeout=60)
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found, reasons, unknown = json.loads(done.stdout)
    names = ("gpu_sm_mhz", "gpu_throttle", "gpu_temperature_c", "gpu_other_processes", "energy_j")
    assert [found[name] for name in names] == [1410, 4, 61, 1, 0.5 if driver == "new" else None]
    assert reasons[-2:] == ["a GPU lowered its clock", "other processes used a GPU"]
    assert unknown


def test_without_a_driver_there_are_no_counters() -> None:
    assert by_uuid("1234") is None


def test_a_comparison_doubts_blocks_in_which_a_gpu_was_throttled_or_shared_with_strangers() -> None:
    guards = {"window_s": 1.0, "cpu_s": {"busy": 0.5, "steal": 0.0, "total": 2.0}, "own_cpu_s": None, "load_1m": 1.0}
    quiet = {"sm_mhz": 1410, "throttle": 1, "temperature_c": 61, "other_processes": 1}  # idle afterwards; the other arm

    def doubts(second: dict[str, int] | None, **raw: int) -> list[str]:
        block = {"arm": "A", "samples": 2, "step_s": [[0.1, 0.1]] * 2, "cpu_s": [0.2, 0.2], "guards": guards}
        (found,) = read_blocks({"blocks": [block | {"gpus": [quiet, second]}], **raw})
        assert found.is_watched
        return found.doubts

    assert doubts(quiet) == doubts(None) == []
    assert doubts(quiet | {"throttle": 5}) == ["a GPU lowered its clock"]
    assert doubts(quiet | {"other_processes": 2}) == ["other processes used a GPU"]
    assert doubts(quiet | {"other_processes": 2}, arms=3) == []
