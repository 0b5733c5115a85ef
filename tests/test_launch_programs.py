"""What `ringmark run` can be asked to run, what becomes of its output, and mistakes in the asking."""

import socket
import zipapp
from pathlib import Path

import pytest

from launch.verdict import read
from tests.launches import SCRIPT, facts, left_behind, run
from tests.ports import free_ports

SPEAK = """import os, sys, time
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
print("short", attempt)
print("a longer line on stderr", attempt, file=sys.stderr)
print("last", attempt, end="", flush=True)
if attempt == "0":
    print(flush=True)
    open("spoken-" + os.environ["RANK"], "w").close()
    while not (os.path.exists("spoken-0") and os.path.exists("spoken-1")):
        time.sleep(0.01)
    sys.exit(3)
"""
SPEAK_IN_SHELL = """attempt=$TORCHELASTIC_RESTART_COUNT
echo short $attempt
echo a longer line on stderr $attempt >&2
printf "last $attempt"
if [ $attempt = 0 ]; then
    echo
    touch spoken-$RANK
    until [ -e spoken-0 -a -e spoken-1 ]; do sleep 0.01; done
    exit 3
fi
"""


def test_a_script_by_path_runs_as_any_other(tmp_path: Path) -> None:
    done = run(tmp_path, "--nproc-per-node", "2", "--run-path", SCRIPT, "show")
    assert sorted(facts(done.stdout)) == [0, 1], done.stderr
    assert facts(done.stdout)[1]["argv"] == [SCRIPT, "show"]


@pytest.mark.parametrize("words", [[], ["--plain"]], ids=["forked", "started"])
def test_a_folder_and_an_archive_run_as_python_runs_them(tmp_path: Path, words: list[str]) -> None:
    folder, archive = tmp_path / "folder", tmp_path / "archive.pyz"
    folder.mkdir()
    (folder / "__main__.py").write_text("import sys, helper\nprint(__name__, sys.argv[1:], helper.X, sys.path[0])\n")
    (folder / "helper.py").write_text("X = 7\n")
    zipapp.create_archive(folder, archive)
    for program in (folder, archive):
        done = run(tmp_path, *words, str(program), "--a")
        assert done.stdout == f"__main__ ['--a'] 7 {program}\n", done.stderr


@pytest.mark.parametrize("words", [["--no-python", "/bin/sh"], ["-j", "2"], ["-j", "2", "--plain"]])
def test_logs_keep_every_line_of_both_streams_and_are_shown_once(tmp_path: Path, words: list[str]) -> None:
    if "--no-python" in words:
        words = ["--nproc-per-node", "2", *words, "-c", SPEAK_IN_SHELL]
    else:
        (tmp_path / "speak.py").write_text(SPEAK)
        words.append("speak.py")
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / f"rank-1-{socket.gethostname()}.log").write_text("of an earlier launch\n")
    done = run(tmp_path, "--max-restarts", "1", "--run-dir", "run", *words)
    assert done.returncode == 0, done.stderr
    spoken = [f"{word} {attempt}" for attempt in "01" for word in ("short", "a longer line on stderr", "last")]
    shown = done.stdout.splitlines()
    for rank, before in enumerate([[], ["of an earlier launch"]]):
        log = (tmp_path / "run" / "logs" / f"rank-{rank}-{socket.gethostname()}.log").read_text()
        assert log.splitlines() == before + spoken
        assert [line.partition("] ")[2] for line in shown if line.startswith(f"[rank {rank}] ")] == spoken
    assert len(shown) == 2 * len(spoken)


def test_a_terminal_that_cannot_show_a_character_shows_the_lines_behind_it(tmp_path: Path) -> None:
    (tmp_path / "sun.py").write_text("import sys\nsys.stdout.buffer.write('sun \u2600\\nafter\\n'.encode())\n")
    done = run(tmp_path, "--run-dir", "run", "sun.py", PYTHONIOENCODING="ascii")
    assert done.stdout == "[rank 0] sun \\u2600\n[rank 0] after\n", done.stderr
    assert (tmp_path / "run" / "logs" / f"rank-0-{socket.gethostname()}.log").read_text() == "sun \u2600\nafter\n"


@pytest.mark.parametrize(
    "words",
    [["--nnodes", "2", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-conf", "timeout=1"], ["--event-log-handler", "nope"]],
)
def test_what_torchs_engine_fails_at_is_one_sentence_and_a_verdict(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "verdict.json").touch()  # of an earlier launch
    done = run(tmp_path, "--run-dir", "run", *words, SCRIPT, "show")
    assert done.returncode == 9, done.stderr
    verdict = read(tmp_path / "run" / "verdict.json")
    assert (verdict.code, verdict.cause, verdict.ranks) == (9, "exit", ())
    assert verdict.sentence.startswith("torch's engine could not start ranks or bring nodes together: ")
    assert f"ringmark: {verdict.sentence}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--nnodes", "2:1", SCRIPT], "expected options as torchrun takes them, got: min_nodes must be > 0"),
        (["--nnodes", "two", SCRIPT], "expected --nnodes as a number or MIN:MAX, got 'two'"),
        (["--max-restarts", "-1", SCRIPT], "expected options as torchrun takes them, got: max_restarts must be >= 0"),
        (["--monitor-interval", "0", SCRIPT], "expected --monitor-interval as seconds above 0, got 0.0"),
        (["--master-port", "99999", SCRIPT], "expected --master-port from 0 to 65535, got 99999"),
        (["--log-dir", SCRIPT, "--tee", "3", SCRIPT], "expected options as torchrun takes them, got: log_dir: "),
        (["--run-dir", SCRIPT, SCRIPT], "expected a folder that can be written, got [Errno 17] File exists"),
        (["--verdict-dir", "/proc/none", SCRIPT], "expected a folder that can be written, got [Errno 2]"),
        (["."], "expected a Python script, got .: a folder without __main__.py"),
        (["--no-python", "no-such-command"], "expected a command after --no-python, got no-such-command"),
        (["--nproc-per-node", "2"], "expected a script after the options"),
        (["--hang-timeout", "soon", SCRIPT], "expected --hang-timeout as seconds above 0, got 'soon'"),
        (["--nprocs", "2", SCRIPT], "expected an option of torchrun, got --nprocs"),
        (["-j", "2x", SCRIPT], "expected -j as NODESxRANKS"),
        (["--nproc-per-node", "many", SCRIPT], "Unsupported nproc_per_node value: many"),
        (["/nowhere/script.py"], "expected a Python script, got /nowhere/script.py: no such file"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, words: list[str], complaint: str) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(tmp_path) == []


def test_a_port_that_was_asked_for_is_used_or_refused(tmp_path: Path) -> None:
    port = str(free_ports(1)[0])
    with socket.create_server(("127.0.0.1", int(port))):
        done = run(tmp_path, "--master-port", port, SCRIPT, "sum")
        assert done.returncode == 2
        assert f"expected a free --master-port, got {port}" in done.stderr
    assert run(tmp_path, "--master-port", port, SCRIPT, "sum").returncode == 0
