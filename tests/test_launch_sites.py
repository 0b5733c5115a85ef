"""Site files: what is written is what is read, and what cannot be right is refused with a remedy."""

import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import containers
from launch.sites import HEADER_VALUES, SITES_DIR, Site, load_site, site_names


def write_site(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", site_names())
def test_every_site_file_of_the_project_loads(name: str) -> None:
    assert isinstance(load_site(name), Site)


def test_the_documented_sites_exist() -> None:
    assert {"local", "gpu-example", "a100-apptainer", "enroot-pyxis", "cpu-cluster"} == set(site_names())


def test_the_example_shows_every_key_that_any_site_uses() -> None:
    example = (SITES_DIR / "gpu-example.toml").read_text()
    container_keys = {"container", "container_image", "container_python", "container_binds"}  # in their own examples

    for each in fields(Site):
        assert each.name in container_keys or re.search(rf"^(# |\[)?{each.name}\b", example, re.MULTILINE), each.name


APPTAINER = Site(
    container="apptainer", container_image="/i.sif", container_binds=("/data", "/raid:/scratch"), gpus_per_node=4
)


def test_apptainer_stands_before_the_interpreter() -> None:
    binds = [*("--bind", "/run"), *("--bind", "/it's me"), *("--bind", "/data"), *("--bind", "/raid:/scratch")]

    assert containers.wrap(APPTAINER, ["/run", "/it's me", "/run"]) == ("apptainer", "exec", "--nv", *binds, "/i.sif")
    assert "--nv" not in containers.wrap(replace(APPTAINER, gpus_per_node=0), ["/run"])
    assert containers.srun_options(APPTAINER, ["/run"]) == ()
    with pytest.raises(ValueError, match="expected folders without ',' and ':' with a container, got '/a,b'"):
        containers.wrap(APPTAINER, ["/a,b"])


def test_pyxis_gets_its_options_from_srun() -> None:
    site = replace(APPTAINER, container="enroot")

    assert containers.wrap(site, ["/run"]) == ()
    assert containers.srun_options(site, ["/run", "/work"], ["NCCL_DEBUG"]) == (
        "--container-image=/i.sif",
        "--container-mounts=/run:/run,/work:/work,/data:/data,/raid:/scratch",
        "--container-env=PYTHONPATH,PYTHONSAFEPATH,NCCL_DEBUG",
    )
    assert containers.wrap(Site(), ["/a:b"]) == containers.srun_options(Site(), ["/a,b"]) == ()


def test_what_a_site_file_leaves_out_is_left_to_the_cluster(tmp_path: Path) -> None:
    site = load_site(write_site(tmp_path, ""))

    assert site == Site(cpus_per_task=None, gpus_per_node=0, setup=(), sbatch_options=(), python=sys.executable)
    assert {key for key in HEADER_VALUES if getattr(site, key) is not None} == {"gpus_syntax", "container"}


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
        gpus_syntax = "gres"
        reservation = "course"
        exclude = "n3,rack1-[4-6]"
        interface = "ib0"
        stop_margin_s = 300
        modules = ["gcc/13.2", "cuda"]
        container = "apptainer"
        container_image = "/images/torch.sif"
        container_python = "/opt/bin/python"
        container_binds = ["/data", "/raid:/scratch"]
        python = "/opt/it's/bin/python"
        setup = ["module load 'cuda/12'"]
        sbatch_options = ["--exclusive", "--mail-type=FAIL,END"]
        [environment]
        NCCL_IB_HCA = "mlx5_0,mlx5_1"
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
        gpus_syntax="gres",
        reservation="course",
        exclude="n3,rack1-[4-6]",
        interface="ib0",
        stop_margin_s=300,
        modules=("gcc/13.2", "cuda"),
        container="apptainer",
        container_image="/images/torch.sif",
        container_python="/opt/bin/python",
        container_binds=("/data", "/raid:/scratch"),
        environment={"NCCL_IB_HCA": "mlx5_0,mlx5_1"},
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
        ("stop_margin_s = -1", r"mine\.toml: expected stop_margin_s from 0 to 4096, got -1"),
        ('modules = ["cuda; ls"]', r"mine\.toml: expected modules as `module load` names them, got 'cuda; ls'"),
        ('modules = ["-f"]', r"mine\.toml: expected modules as `module load` names them, got '-f'"),
        ('interface = "ib 0"', r"mine\.toml: expected interface as a network interface's name"),
        ('gpus_syntax = "gpus"', r"mine\.toml: expected gpus_syntax as gpus-per-node or gres, got 'gpus'"),
        ('container = "docker"', r"mine\.toml: expected container as none, apptainer or enroot, got 'docker'"),
        ('container = "enroot"', r"mine\.toml: expected container and container_image together"),
        ('container_image = "x"', r"mine\.toml: expected container and container_image together"),
        ('container_binds = ["data"]', r"mine\.toml: expected container_binds as /from or /from:/to"),
        ('container_binds = ["/a,/b"]', r"mine\.toml: expected container_binds as /from or /from:/to"),
        ("environment = 1", r"mine\.toml: expected environment as a table of strings, got 1"),
        ("[environment]\nA = 1", r"mine\.toml: expected environment as a table of strings"),
        ("[environment]\nRANK = '1'", r"mine\.toml: expected in \[environment\] a variable that ringmark and SLURM"),
        ("[environment]\nSLURM_X = '1'", r"mine\.toml: expected in \[environment\] a variable that ringmark and SLURM"),
        ("[environment]\nHF_TOKEN = 'x'", r"mine\.toml: expected no secrets in \[environment\].*--keep-env HF_TOKEN"),
        ("[environment]\nPROXY = 'http://me:pw@host'", r"mine\.toml: expected no secrets in \[environment\]"),
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
