"""The environment of a record: names of processors and drivers as systems tell them."""

import platform

import pytest

from bench.environment import CPUINFO, DRIVER, _driver, capture, cpu_name, driver_version
from ddp.context import pick_device, process_group
from ddp.env import ALONE

ARM = """processor\t: 0
BogoMIPS\t: 50.00
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0c
CPU revision\t: 1

processor\t: 1
CPU implementer\t: 0x41
CPU part\t: {part}
"""
CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86  Release Build  (dvs-builder@U16)  Tue Jan 7\n"


def test_a_processor_is_called_by_its_model_or_by_what_arm_tells() -> None:
    assert cpu_name("processor\t: 0\nmodel name\t: AMD EPYC 7B13\n", "x86_64") == "AMD EPYC 7B13"
    assert cpu_name(ARM.format(part="0xd0c"), "aarch64") == "aarch64, implementer 0x41, part 0xd0c"
    assert cpu_name(ARM.format(part="0xd05"), "aarch64") == "aarch64, implementer 0x41, part 0xd0c 0xd05"
    assert cpu_name("CPU implementer\t: 0x41\n", "aarch64") == "aarch64"
    assert cpu_name("", "riscv64") == "riscv64"
    assert cpu_name("model name\t:\n", "") is None


@pytest.mark.parametrize(
    ("text", "version"), [(CLOSED, "535.104.05"), (OPEN, "570.86"), ("", None), ("NVRM version: none\n", None)]
)
def test_the_drivers_version_is_read_from_its_own_line(text: str, version: str | None) -> None:
    assert driver_version(text) == version
    assert driver_version(f"GCC version: 12.3.0 x\n{text}") is None


def test_an_environment_tells_processor_and_driver_and_none_without_a_gpu() -> None:
    with process_group(ALONE, device=pick_device("cpu", ALONE), timeout_s=60.0) as ctx:
        found = capture(ctx)
    assert found["cpu"]
    assert platform.machine() in found["cpu"] or found["cpu"] == cpu_name(CPUINFO.read_text(), "")
    assert (found["driver"], found["cuda"], found["gpus"]) == (None, None, 0)


def test_the_driver_is_known_where_there_is_one_and_only_there() -> None:
    version = _driver()
    assert (version is not None) == DRIVER.exists()
    assert version is None or version.partition(".")[0].isdigit()
