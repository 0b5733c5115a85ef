"""The folder of a run: its owner's alone, with no secrets in what is noted, and nothing written through a link."""

import json
import multiprocessing
import os
import re
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import run_folder, run_record
from launch.private_files import write_private
from launch.secrets import MASK, is_secret_name, mask, mask_argv, mask_environment, secret_arguments, secret_variables
from launch.sites import Site
from launch.words import aligned, harmless

SECRETS = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_CONNECTION_STRING"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "COMET_API_KEY"),
    *("NEPTUNE_API_TOKEN", "KAGGLE_KEY", "NGC_API_KEY", "GH_TOKEN", "GITHUB_TOKEN", "CI_JOB_TOKEN"),
    *("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "DB_PASSWORD", "DB_PASSWD", "PGPASSWORD_FILE_PASSPHRASE"),
    *("FTP_PASS", "COOKIE_JAR", "SESSION_COOKIES", "SLURM_JWT", "PRIVATE_KEY", "SSH_AUTH_SOCK", "BASIC_AUTH"),
    *("SENTRY_DSN", "DATABASE_CONN_STRING", "NCCL_SECRET", "CUDA_API_KEY", "TORCH_HUB_TOKEN", "GLOO_PASSWORD"),
    *("apiKey_token", "wifi_psk", "RESTIC_PASSWORD", "SIGNING_KEY"),
)
HARMLESS = (
    *("PATH", "HOME", "PWD", "OLDPWD", "num_tokens", "use_cls_token", "--max-tokens", "sort_key", "--key-dim"),
    *("TOKENIZERS_PARALLELISM", "MONKEY", "KEYBOARD", "COMPASS", "AUTHOR", "--first-pass", "pad_token"),
    *("--token-dim", "KRB5CCNAME", "NCCL_DEBUG", "OMP_NUM_THREADS", "--lr"),
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_two_may_write_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    """As the launchers of two nodes do that share a folder: one of them would have been without its file, and died."""

    def write_often() -> None:
        for number in range(1500):
            write_private(tmp_path / "file", f"{number}\n" * 100)

    writers = [multiprocessing.get_context("fork").Process(target=write_often) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "1499\n" * 100


def test_a_run_folder_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run = run_folder.create(tmp_path / "runs", "resnet18.2-nodes")
        write_private(run / "a", "text")
        run_folder.add_job(run, run_folder.Job(job_id="1", time_s=0.0, options=()))
        run_folder.ask_to_stop(run, "why")
    finally:
        os.umask(before)

    assert re.fullmatch(r"resnet18\.2-nodes-\d{8}T\d{6}Z-[0-9a-f]{4}", run.name)
    assert mode(run) == 0o700
    assert {path.name: mode(path) for path in run.iterdir()} == dict.fromkeys(["a", "jobs.jsonl", "stop"], 0o600)
    assert run_folder.create(tmp_path / "runs", "resnet18.2-nodes") != run


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", "a b", "a\nb", "x" * 65, "ü", "a\0", "%j"])
def test_a_name_is_one_plain_word(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected --name of up to 64 letters"):
        run_folder.create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        run_folder.make(tmp_path / "run")

    run = run_folder.create(tmp_path, "x")
    for name in ("stop", "stop.tmp", "jobs.jsonl"):
        (run / name).symlink_to(tmp_path / "victim")
    run_folder.ask_to_stop(run, "why")
    with pytest.raises(OSError, match="symbolic"):
        run_folder.add_job(run, run_folder.Job(job_id="1", time_s=0.0, options=()))
    assert not (tmp_path / "victim").exists()
    assert run_folder.stop_reason(run) == "why"


def test_a_parent_that_cannot_hold_runs_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for parent in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(ValueError, match=r"expected a folder .*in --run-dir, got .*; choose another"):
            run_folder.create(parent, "x")


def test_a_folder_that_others_can_write_is_no_run_of_ours(tmp_path: Path) -> None:
    run = run_folder.create(tmp_path, "x")
    (run / "spec.json").write_text("{}")
    assert run_folder.find(str(run)) == run
    run.chmod(0o777)
    with pytest.raises(ValueError, match="that only its owner can write"):
        run_folder.find(str(run))


def test_a_task_of_a_sweep_has_its_jobs_in_the_folder_above(tmp_path: Path) -> None:
    run = run_folder.create(tmp_path, "sweep")
    for index in (0, 2, 10):
        run_folder.make(run / f"task-{index}")
    run_folder.add_job(run, run_folder.Job(job_id="7", time_s=0.0, options=()))

    assert [path.name for path in run_folder.tasks(run)] == ["task-0", "task-2", "task-10"]
    assert [job.job_id for job in run_folder.jobs(run / "task-10")] == ["7_10"]
    run_folder.ask_to_stop(run, "all")
    assert run_folder.stop_reason(run / "task-2") == "all"
    run_folder.withdraw_stop(run)
    assert run_folder.stop_reason(run / "task-2") is None
    (run / "task-0" / "DONE").touch()
    assert not run_folder.is_done(run)
    for index in (2, 10):
        (run / f"task-{index}" / "DONE").touch()
    assert run_folder.is_done(run)


def test_forty_secrets_leave_no_trace_in_a_record(tmp_path: Path) -> None:
    values = [f"canary-{index:02}-Zq8" for index in range(len(SECRETS))]
    environ = dict(zip(SECRETS, values, strict=True))
    urls = {"NCCL_PROXY": "http://me:canary-url-1@proxy:80", "TORCH_INDEX": "https://x/?token=canary-url-2"}
    argv = [word for name, value in environ.items() for word in (f"--{name.lower()}", value)]
    argv += [f"{name}={value}" for name, value in environ.items()]
    argv += ["https://me:canary-url-3@host/x", '{"password": "canary-json"}', "Authorization: Bearer canary-bearer"]
    site = Site(setup=(f"export HF_TOKEN={values[0]}", "curl https://u:canary-url-4@h"))
    run = run_folder.create(tmp_path, "x")

    data = run_record.record(argv, {**environ, **urls, "NCCL_DEBUG": "INFO"}, work_dir=tmp_path, site=site)
    run_record.write(run, data)

    assert len(set(values)) == 40
    text = (run / "record.json").read_text()
    assert "canary" not in text
    assert data["environment"]["NCCL_DEBUG"] == "INFO"
    assert json.loads(text)["user"]
    assert json.loads(text)["versions"]["torch"]


def test_names_of_secrets_are_told_from_names_like_them() -> None:
    assert [name for name in SECRETS if not is_secret_name(name)] == []
    assert [name for name in HARMLESS if is_secret_name(name)] == []


def test_arguments_that_look_secret_are_named_but_not_shown() -> None:
    argv = ["s.py", "--api-key", "geheim1", "--lr=1", "--db-password=geheim2 x", "model.token=geheim3"]
    argv += ["https://me:geheim4@h", "--verbose", "hf_" + "a" * 20]

    assert "geheim" not in " ".join([*mask_argv(argv), *secret_arguments(argv)])
    assert mask_argv(argv)[:5] == ["s.py", "--api-key", MASK, "--lr=1", f"--db-password={MASK}"]
    assert secret_arguments(argv) == ["--api-key", "--db-password", "model.token", "an argument", "--verbose"]
    assert mask_argv(["--lr", "0.1", "--num-tokens", "5", "a=b"]) == ["--lr", "0.1", "--num-tokens", "5", "a=b"]


def test_variables_are_recorded_by_a_list_and_left_at_home_by_their_looks() -> None:
    environ = {"NCCL_DEBUG": "x", "MY_OWN": "x", "HF_TOKEN": "x", "HTTPS_PROXY": "http://a:b@c", "SLURM_JWT": "x"}

    assert mask_environment(environ) == {"NCCL_DEBUG": "x", "SLURM_JWT": MASK}
    assert secret_variables(environ) == ["HF_TOKEN", "HTTPS_PROXY", "SLURM_JWT"]
    assert secret_variables(environ, kept=["HF_TOKEN"]) == ["HTTPS_PROXY", "SLURM_JWT"]


@pytest.mark.parametrize("text", ["x" * 200_000, "a-" * 100_000, "?" * 100_000, "://" * 60_000, "\x1b]" * 100_000])
def test_long_text_is_masked_and_cleaned_in_no_time(text: str) -> None:
    started_s = time.process_time()
    mask(text)
    harmless(text)
    assert time.process_time() - started_s < 5


@given(st.text())
def test_a_cleaned_line_cannot_command_a_terminal(text: str) -> None:
    clean = harmless(text)

    assert all(character == "\t" or character >= " " for character in clean)
    assert not re.search("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", clean)


def test_cleaning_takes_whole_sequences_and_leaves_the_text() -> None:
    assert harmless("a\x1b[31;1mred\x1b[0m\tb\x1b]0;title\x07c\x1bPdata\x1b\\d\x9b2Je\x1b(Bf\x08g") == "ared\tbcdefg"
    assert harmless("ünï 火 100% $x") == "ünï 火 100% $x"
    assert aligned([("a", "bb"), ("ccc", "")]) == ["a    bb", "ccc"]
