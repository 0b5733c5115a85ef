"""Forked ranks are what Python would have started: the same scripts, by the nursery and by `python SCRIPT`."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.rank import TORCHS_OLD_SEED
from tests.launches import ROOT, environment, run

DRIVER = """
import json, os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
from launch.nursery import Birth, Nursery

nursery = Nursery(["json", "random", "not_there"])
births = {nursery.number(): number for number in range(len(json.loads(sys.argv[1])))}
for number, each in zip(births, json.loads(sys.argv[1])):
    nursery.request(number, Birth(**each))
codes, ready = {}, None
while len(codes) < len(births):
    message = nursery.hear()
    ready = message if "ready" in message else ready
    if "ended" in message:
        codes[births[message["ended"]]] = message["code"]
os.kill(nursery.pid, signal.SIGKILL)  # or it holds on to this output, until the guardian that it expects has come
print(json.dumps({"codes": [codes[number] for number in range(len(births))], "ready": ready}))
"""


@dataclass(frozen=True)
class End:
    """What a script came to."""

    code: int
    out: str
    err: str


def forked(folder: Path, scripts: list[list[str]], **more: str) -> tuple[list[End], dict[str, Any]]:
    """The ends of scripts, each given as its argv with `-m` first if it is a module, and what the nursery said."""
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    births = [
        {
            "script": argv[argv[0] == "-m"],
            "is_module": argv[0] == "-m",
            "arguments": argv[1 + (argv[0] == "-m") :],
            "environment": {"RANK": str(number)},
            "stdout": str(folder / f"{number}.out"),
            "stderr": str(folder / f"{number}.err"),
            "stack_file": str(folder / f"{number}.stack"),
        }
        for number, argv in enumerate(scripts)
    ]
    for path in [*folder.glob("*.out"), *folder.glob("*.err")]:
        path.unlink()  # a rank appends
    command = [sys.executable, "-P", str(driver), str(ROOT), json.dumps(births)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, **more),
        input="typed\n" * 9,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    texts = [[(folder / f"{number}.{kind}").read_text() for kind in ("out", "err")] for number in range(len(scripts))]
    return [End(code, *pair) for code, pair in zip(said["codes"], texts, strict=True)], said["ready"]


def started(folder: Path, argv: list[str], **more: str) -> End:
    """The end of a script that Python runs, as torchrun would start it."""
    done = subprocess.run(
        [sys.executable, "-u", *argv],
        cwd=folder,
        env=environment(folder, **more) | {"RANK": "0"},
        input="typed\n",
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    return End(done.returncode, done.stdout, done.stderr)


ENDS = {
    "text": "import sys; sys.exit('a text')",
    "many": "import sys; sys.exit(300)",
    "minus": "import sys; sys.exit(-1)",
    "none": "import sys; print('x', end=''); sys.exit()",
    "list": "import sys; sys.exit([1, 2])",
    "raise": """
def f():
    raise ValueError("deep")
try:
    f()
except ValueError as error:
    raise KeyError(3) from error
""",
    "syntax": "print('never')\nx = (1,\n",
    "term": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "abort": "import os, signal; os.kill(os.getpid(), signal.SIGABRT)",
    "bare": "import os; print('said'); os._exit(42)",
    "hook": "import sys\nsys.excepthook = lambda *_: print('my hook')\n1 / 0",
    "thread": """
import atexit, sys, threading, time
atexit.register(lambda: print("registered"))
said = threading.Event()
def work():
    said.wait()
    time.sleep(0.2)
    print("thread")
threading.Thread(target=work).start()
print("main")
said.set()
sys.exit(5)
""",
    "raise-late": """
import atexit, threading
def late():
    raise RuntimeError("late")
atexit.register(print, "after it")
atexit.register(late)
""",
    "pickle": """
import dataclasses, inspect, pickle
@dataclasses.dataclass
class Mine:
    x: int = 3
print(pickle.loads(pickle.dumps(Mine(4))), inspect.getsource(Mine).count("x: int"), Mine.__module__)
""",
    "bytes": "import sys; sys.stdout.buffer.write(b'raw\\n'); print('ü', ascii(sys.argv)); print('ö', file=sys.stderr)",
    "pools": """
import multiprocessing as mp
def double(x):
    return 2 * x
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with mp.get_context(method).Pool(1) as pool:
            print(method, pool.map(double, [1, 2]))
""",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "facts": """
import gc, json, logging, multiprocessing, os, resource, signal, sys, threading, warnings
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "signals": {name.name: str(signal.getsignal(name)) for name in signal.Signals},
    "masks": [status[key].strip() for key in ("SigBlk", "SigIgn", "Threads")],
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "name": __name__, "file": __file__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "ours": [name for name in sys.modules if name.partition(".")[0] in ("launch", "models")],
    "streams": [(each.encoding, each.errors, each.fileno(), each.isatty()) for each in (sys.stdout, sys.stderr)],
    "typed": sys.stdin.readline(), "umask": os.umask(0o22), "nice": os.nice(0),
    "limits": resource.getrlimit(resource.RLIMIT_CORE), "gc": [gc.isenabled(), gc.get_threshold()],
    "hooks": [sys.excepthook is sys.__excepthook__, threading.excepthook.__module__],
    "threads": [each.name for each in threading.enumerate()], "process": multiprocessing.current_process().name,
    "method": multiprocessing.get_start_method(allow_none=True), "logging": len(logging.root.handlers),
    "warnings": len(warnings.filters), "leads": os.getsid(0) == os.getpid() == os.getpgrp(),
    "open": sorted(set(os.listdir("/proc/self/fd")) & {"0", "1", "2"}), "affinity": len(os.sched_getaffinity(0)),
}, indent=1))
""",
}  # fmt: skip
WELL = {"none", "pickle", "bytes", "pools", "facts"}
"""What must get to its end."""
BY_SIGNAL = {"interrupted": 130}
"""Where Python dies of a signal whose code a shell shows as the rank's own."""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[End]]:
    """Of each script: what it came to as a forked rank, and as Python's own."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in ENDS.items():
        (folder / f"{name}_script.py").write_text(text)
    argvs = [[str(folder / f"{name}_script.py"), "--n", "1", ""] for name in ENDS]
    ours, ready = forked(folder, argvs, PYTHONIOENCODING="utf-8:replace")
    assert ready == {"ready": 1, "cuda": False}
    theirs = [started(folder, argv, PYTHONIOENCODING="utf-8:replace") for argv in argvs]
    return {name: pair for name, *pair in zip(ENDS, ours, theirs, strict=True)}


@pytest.mark.xdist_group("nursery")
@pytest.mark.parametrize("name", ENDS)
def test_a_script_ends_and_speaks_as_python_has_it(ends: dict[str, list[End]], name: str) -> None:
    ours, theirs = ends[name]
    assert ours.out == theirs.out
    assert re.sub("0x[0-9a-f]+", "0x", ours.err) == re.sub("0x[0-9a-f]+", "0x", theirs.err)
    assert ours.code == BY_SIGNAL.get(name, theirs.code)
    assert (ours.code == 0) == (name in WELL or name == "raise-late")  # Python does not count what atexit raises


def test_a_script_next_to_packages_of_our_names_finds_its_own(tmp_path: Path) -> None:
    """And modules find their relatives, whether Python's path is safe or not."""
    for name in ("launch", "models", "ddp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "stacks.py").write_text("mine = True")
    (tmp_path / "near.py").write_text(
        "import sys, launch, models, ddp.stacks, launch.stacks\n"
        "print(ddp.stacks.mine, launch.stacks.mine, launch.__file__, models.__file__, sys.path)"
    )
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "other.py").write_text("value = 3")
    main = (
        "import sys\nfrom .other import value\nprint(value, __name__, __package__, __spec__.name, sys.argv, sys.path)"
    )
    for name in ("__main__", "tool"):
        (tmp_path / "pkg" / f"{name}.py").write_text(main)
    argvs = [["near.py"], ["-m", "pkg", "--x"], ["-m", "pkg.tool"], ["-m", "nothing.there"]]
    for more in ({}, {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path)}):
        ours, _ = forked(tmp_path, argvs, **more)
        assert ours[:3] == [started(tmp_path, argv, **more) for argv in argvs[:3]]
        assert ours[3].code == 1
        assert "No module named 'nothing'" in ours[3].err


def test_the_debugger_can_be_spoken_to(tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text("x = 41\nbreakpoint()\nprint('on', x)")
    (tmp_path / "ours").mkdir()
    words = ["-j", "1", "--quiet", "--no-pin", "stop.py"]
    command = [sys.executable, "-P", str(ROOT / "launch" / "boot.py"), "agent", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), input="p x + 1\nx = 5\nc\n", capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "(Pdb) 42" in done.stdout
    assert done.stdout.endswith("on 5\n")


LOADERS = """
import json, os, random, sys, uuid
import numpy, torch
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index**2

if __name__ == "__main__":
    sums = {
        method: sum(int(batch.sum()) for batch in DataLoader(Squares(), num_workers=1, multiprocessing_context=method))
        for method in ("fork", "spawn")[: 2 if os.environ["RANK"] == "0" else 1]
    }
    facts = {
        "sums": sums, "seed": torch.initial_seed(), "drawn": torch.rand(1).item(),
        "different": [random.random(), float(numpy.random.rand()), str(uuid.uuid4())],
    }
    print("facts " + json.dumps(facts), flush=True)
"""


def fresh() -> int:
    """The seed with which torch begins in a new process."""
    words = [sys.executable, "-c", "import torch; print(torch.initial_seed())"]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_loaders_work_in_a_rank_and_random_numbers_are_those_of_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "loaders.py").write_text(LOADERS)
    done = run(tmp_path, "-j", "2", "--preload", "numpy", "loaders.py")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line.partition("facts ")[2]) for line in done.stdout.splitlines()]
    first, second = sorted(found, key=lambda each: -len(each["sums"]))
    assert first["sums"] == {"fork": 14, "spawn": 14}
    assert second["sums"] == {"fork": 14}
    never_drawn = fresh() == TORCHS_OLD_SEED  # torch draws a seed for each process, or takes one that never changes
    assert (first["seed"] == second["seed"]) == never_drawn
    assert (first["drawn"] == second["drawn"]) == never_drawn
    assert not set(first["different"]) & set(second["different"])


def test_more_than_one_message_holds_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")
    done = run(tmp_path, "--nproc-per-node", "1", "script.py", *["x" * 100_000] * 12)
    assert done.returncode == 9, done.stderr
    assert "expected to ask for a rank in one message" in done.stderr
    assert "use --plain" in done.stderr
    assert "Traceback" not in done.stderr
