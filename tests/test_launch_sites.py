"""Site files: what is written is what is read, and what cannot be right is refused with a remedy."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.sites import HEADER_VALUES, Site, load_site, site_names


def write_site(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", site_names())
def test_every_site_file_of_the_project_loads(name: str) -> None:
    assert isinstance(load_site(name), Site)


def test_the_local_and_the_example_site_exist() -> None:
    assert {"local", "gpu-example"} <= set(site_names())


def test_what_a_site_file_leaves_out_is_left_to_the_cluster(tmp_path: Path) -> None:
    site = load_site(write_site(tmp_path, ""))

    assert site == Site(cpus_per_task=1, gpus_per_node=0, setup=(), sbatch_options=(), python=sys.executable)
    assert all(getattr(site, key) is None for key in HEADER_VALUES)


def test_every_key_is_read(tmp_path: Path) -> None:
    text = """
        partition = "gpu,long"
        account = "team-1"
        qos = "high"
        constraint = "[a100|h100]&ib*2"
        time = "2-12:00:00"
        mem = "128G"
        cpus_per_task = 32
        gpus_per_node = 4
        gpu_type = "a100"
        python = "/opt/it's/bin/python"
        setup = ["module load 'cuda/12'"]
        sbatch_options = ["--exclusive", "--mail-type=FAIL,END"]
    """
    assert load_site(write_site(tmp_path, text)) == Site(
        partition="gpu,long",
        account="team-1",
        qos="high",
        constraint="[a100|h100]&ib*2",
        time="2-12:00:00",
        mem="128G",
        cpus_per_task=32,
        gpus_per_node=4,
        gpu_type="a100",
        python="/opt/it's/bin/python",
        setup=("module load 'cuda/12'",),
        sbatch_options=("--exclusive", "--mail-type=FAIL,END"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partitoin = "gpu"', r"mine\.toml: expected keys among .*, got 'partitoin'; did you mean 'partition'\?"),
        ("zzz = 1", r"mine\.toml: expected keys among .*, got 'zzz'; remove it"),
        ("time = 30", r"mine\.toml: expected time as a string, got 30"),
        ('cpus_per_task = "8"', r"mine\.toml: expected cpus_per_task as a whole number, got '8'"),
        ("cpus_per_task = true", r"mine\.toml: expected cpus_per_task as a whole number, got True"),
        ("cpus_per_task = 0", r"mine\.toml: expected cpus_per_task from 1 to 4096, got 0"),
        ("gpus_per_node = -1", r"mine\.toml: expected gpus_per_node from 0 to 4096, got -1"),
        ('setup = "module load cuda"', r"mine\.toml: expected setup as a list of strings"),
        ("setup = [1]", r"mine\.toml: expected setup as a list of strings"),
        ('setup = ["true\\nfalse"]', r"mine\.toml: expected setup without control characters"),
        ('python = "python3 -u"', r"mine\.toml: expected python as an absolute path or a bare command"),
        ('python = "/opt/\\npython"', r"mine\.toml: expected python without control characters"),
        ('time = "1 hour"', r"mine\.toml: expected time as a time .*, got '1 hour'; write for example"),
        ('mem = "16 GB"', r"mine\.toml: expected mem as memory of a node"),
        ('sbatch_options = ["-p gpu"]', r"mine\.toml: expected sbatch_options as --name or --name=value"),
        ('sbatch_options = ["--comment=a\\nb"]', r"mine\.toml: expected sbatch_options as --name or --name=value"),
        ('sbatch_options = ["--nodes=9"]', r"mine\.toml: expected sbatch_options that ringmark does not set"),
        ('sbatch_options = ["--wrap=x"]', r"mine\.toml: expected sbatch_options that ringmark does not set"),
        ("time = ", r"expected TOML in .*mine\.toml, got "),
        ('time = "1"\ntime = "2"', r"expected TOML in .*mine\.toml, got "),
    ],
)
def test_a_site_file_that_cannot_be_right_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_site(write_site(tmp_path, text))


def test_an_unknown_site_is_answered_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"one of .*local.*, got 'locla'; did you mean 'local'\?"):
        load_site("locla")


def test_a_site_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected TOML in"):
        load_site(str(tmp_path / "mine.toml"))


# What could end a header line, start a second word, a comment or an expansion.
BREAKOUT = "\n\r\t \x00\x0b\x1b\x7f\x85\u2028'\"`$;#\\<>"


@given(
    key=st.sampled_from(sorted(HEADER_VALUES)),
    before=st.sampled_from(["", "a", "1", "00:10:00", "4G"]),
    bad=st.sampled_from(BREAKOUT),
    after=st.text(max_size=20),
)
def test_no_header_value_can_leave_its_line(key: str, before: str, bad: str, after: str) -> None:
    with pytest.raises(ValueError, match=f"expected {key} as "):
        Site(**{key: before + bad + after})  # type: ignore[arg-type]


@given(value=st.text(max_size=30))
def test_an_option_of_the_site_is_one_printable_word_or_refused(value: str) -> None:
    option = f"--comment={value}"
    try:
        Site(sbatch_options=(option,))
    except ValueError:
        return
    assert option.isprintable()
    assert len(option.split()) == 1
    assert not set(option) & set(BREAKOUT)
