"""Sixty hostile values in every field that a person fills in: each arrives byte for byte, or is refused."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from launch import plan, spec, submit
from launch.argv import UsageError
from launch.plan import Plan
from launch.sites import HEADER_VALUES, Site
from tests import batch_recorder
from tests.hostile import CANARY, HOSTILE, IMPOSSIBLE
from tests.slurm_cluster import Cluster

ROOT = Path(__file__).resolve().parent.parent
CARRIED = [value for value in HOSTILE if value not in IMPOSSIBLE]
# Prints its arguments, each ended by NUL, wherever the script calls an interpreter.
PRINT_ARGV = "#!/bin/sh\nprintf '%s\\0' \"$@\"\n"


def no_worker(words: Sequence[str], ranks: int) -> tuple[str, ...]:
    raise UsageError("expected run")


def printer(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "python").write_text(PRINT_ARGV)
    (folder / "python").chmod(0o755)
    return str(folder / "python")


def site_file(folder: Path, python: str, **more: object) -> str:
    path = folder / "site.toml"
    values = {"python": python, **more}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return str(path)


def stored(planned: Plan) -> Path:
    """Make a plan's run folder as `submit` does, without queueing it -> the spec."""
    planned.job.run_dir.mkdir(parents=True)
    return spec.write(planned.specs[0], planned.job.run_dir)


def run_under_bash(planned: Plan, folder: Path) -> list[str]:
    """Run a rendered script with real bash, its interpreter a program that prints its words -> those words."""
    script = planned.script.encode()
    subprocess.run(["bash", "-n"], input=script, check=True, cwd=folder)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(["bash"], input=script, cwd=folder, env=environment, capture_output=True, check=True)
    assert not list(folder.rglob(CANARY))
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


def check_runs(planned: Plan, folder: Path) -> spec.Spec:
    """The script calls the interpreter with the path of the spec and nothing else -> the spec as the job reads it."""
    path = stored(planned)
    assert run_under_bash(planned, folder) == ["-m", "launch.batch", "--spec", str(path)]
    return spec.read(path)


def sentence(error: BaseException) -> None:
    """What a refusal has to look like: one line that says what was expected and got, and safe for a terminal."""
    text = str(error)
    assert "expected" in text
    assert "got" in text
    assert "\x1b" not in text
    assert "\n" not in text


def test_there_are_sixty_different_values() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 60


def test_arguments_and_variables_arrive_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    site = site_file(tmp_path, printer(tmp_path / "bin"))
    variables = [f"--env=V{index}={value}" for index, value in enumerate(CARRIED)]
    argv = ["--site", site, "--run-dir", str(tmp_path / "runs"), *variables, "--", "run", "s.py", *CARRIED]

    read = check_runs(plan.plan(argv, no_worker), tmp_path)

    assert read.arguments == tuple(CARRIED)
    assert list(read.environment.values()) == CARRIED
    # A process can be given each of them just so.
    words = subprocess.run(["printf", "%s\\0", *read.arguments], capture_output=True, check=True).stdout
    assert [os.fsdecode(word) for word in words.split(b"\0")[:-1]] == CARRIED


@pytest.mark.parametrize("value", IMPOSSIBLE)
@pytest.mark.parametrize("place", ["argument", "variable", "script"])
def test_what_no_process_can_be_given_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {"argument": ["s.py", value], "variable": ["s.py"], "script": [value + ".py"]}[place]
    variable = [f"--env=A={value}"] if place == "variable" else []

    with pytest.raises((UsageError, ValueError)) as caught:
        plan.plan(["--site", "local", *variable, "--", "run", *words], no_worker)
    sentence(caught.value)


@pytest.mark.parametrize("field", ["script", "work_dir", "run_dir", "python"])
def test_paths_are_named_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    refused: list[Exception] = []
    for index, value in enumerate(CARRIED):
        here = tmp_path / str(index)
        folder = here / f"a{value.replace('/', '_')[:100]}"
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder if field == "work_dir" else here)
        where = folder if field == "python" else here / "bin"
        script = str(folder / "s.py") if field == "script" else "s.py"
        runs = str(folder / "runs") if field == "run_dir" else "runs"
        try:
            site = site_file(here, printer(where))
            planned = plan.plan(["--site", site, "--run-dir", runs, "--", "run", script], no_worker)
        except (UsageError, ValueError) as error:
            refused.append(error)
            continue
        read = check_runs(planned, here)
        assert read.script == str(Path.cwd() / script)
        assert read.work_dir == str(Path.cwd())
    for error in refused:
        sentence(error)
    # Only what a script's own lines name is restricted; a run's folder lies in the working folder here.
    assert len(refused) <= (0 if field == "script" else 20), [str(error) for error in refused]


FIELDS: dict[str, Callable[[str], object]] = {
    **{key: (lambda value, key=key: Site(**{key: value})) for key in HEADER_VALUES},  # type: ignore[misc]
    "modules": lambda value: Site(modules=(value,)),
    "container_image": lambda value: Site(container="enroot", container_image=value),
    "container_binds": lambda value: Site(container="enroot", container_image="i", container_binds=(value,)),
    "container_python": lambda value: Site(container_python=value),
    "sbatch_options": lambda value: Site(sbatch_options=(value,)),
    "the value of sbatch_options": lambda value: Site(sbatch_options=(f"--comment={value}",)),
    "the name of a variable": lambda value: Site(environment={value: "1"}),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_site_takes_plain_values_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.chdir(tmp_path)
    python = printer(tmp_path / "bin")
    taken = []
    for value in HOSTILE:
        try:
            site = FIELDS[field](value)
        except ValueError as error:
            sentence(error)
            continue
        taken.append(value)
        assert isinstance(site, Site)
        monkeypatch.setattr("launch.plan.load_site", lambda name, site=site: site)
        planned = plan.plan(["--site", "x", "--name", f"n{len(taken)}", "--", "run", "s.py"], no_worker)
        assert all(word.isprintable() for word in planned.sbatch_options)
        assert planned.script.count("\n#SBATCH ") == len(planned.sbatch_options)
        script = planned.script.replace(Site().python, python)
        if "module load" not in script:
            subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert not list(tmp_path.rglob(CANARY))
    for value in taken:
        assert re.fullmatch(r"[A-Za-z0-9_.,:@+%*&|()\[\]/=#-]+", value, re.ASCII), value


@pytest.mark.parametrize("flag", ["--name", "--time", "--exclude"])
def test_flags_that_reach_the_header_take_plain_values_only(flag: str) -> None:
    taken, refused = [], []
    for value in HOSTILE:
        try:
            planned = plan.plan(["--site", "local", f"{flag}={value}", "--", "run", "s.py"], no_worker)
        except (UsageError, ValueError) as error:
            refused.append(str(error))
            continue
        taken.append(value)
        assert all(word.isprintable() for word in planned.sbatch_options)
    assert "\n" not in "".join(refused)
    assert set(taken) <= {"--nodes=9", "x" * 10_000, "-h", "mlx5_0,mlx5_1"}


@pytest.mark.xdist_group("slurm")
def test_a_real_job_sees_all_of_them_exactly(
    slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "it's $(touch pwned) `touch pwned` 100% %j ü"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    (work / "s.py").write_text("")
    site = site_file(tmp_path, batch_recorder.install(work, ROOT))
    variables = [f"--env=V{index}={value}" for index, value in enumerate(CARRIED)]
    argv = ["--site", site, "--run-dir", "runs", *variables, "--", "run", "s.py", "end", "0", *CARRIED]

    assert submit.submit(argv, no_worker) == 0

    (run,) = (work / "runs").iterdir()
    (job_id,) = [json.loads(line)["job_id"] for line in (run / "jobs.jsonl").read_text().splitlines()]
    job = slurm_cluster.wait_for(job_id, 30)
    assert job["JobState"] == "COMPLETED", [path.read_text() for path in run.glob("job-*.out")]
    seen = json.loads((run / "attempts" / "0" / batch_recorder.RECORD).read_text())
    assert seen["argv"] == ["-m", "launch.batch", "--spec", str(run / "spec.json")]
    assert seen["spec"]["arguments"][2:] == CARRIED
    assert list(seen["spec"]["environment"].values()) == CARRIED
    assert seen["spec"]["work_dir"] == str(work)
    assert [path.name for path in run.glob("job-*.out")] == [f"job-{job_id}.out"]
    assert not list(tmp_path.rglob(CANARY))
