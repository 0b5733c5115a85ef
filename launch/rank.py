"""What happens in a rank's process around a person's script: its own session, its CPUs, its last words.

A fork of the nursery calls `be_rank`; a rank that is started anew calls `entry`, with the same facts as an argument.
"""

import atexit
import builtins
import contextlib
import faulthandler
import io
import json
import os
import random
import runpy
import signal
import sys
import threading
import time
import traceback
import types
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from launch.nursery import Birth
from launch.processes import die_with, name_process
from launch.recorder import serve
from launch.reporter import Reporter, last_words, reporter
from launch.stacks import register
from launch.victims import VICTIM_WAIT_S, is_victim

TORCHS_OLD_SEED = 67280421310721
"""With which every process begins in versions of torch that draw none."""


def be_rank(birth: Birth, parent: int) -> int:
    """Become a rank in a fork of the nursery -> the exit code of the script."""
    os.setsid()
    die_with(parent)
    name_process(f"rank {birth.environment['RANK']}")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(birth.environment)
    _redirect(birth)
    _draw_seeds()
    if birth.threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(birth.threads)
    return _run(birth)


def _draw_seeds() -> None:
    """Random numbers of this rank's own, where a process that is started anew would have had its own."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    torch = sys.modules.get("torch")
    if torch is not None and torch.initial_seed() != TORCHS_OLD_SEED:
        torch.default_generator.seed()


def _redirect(birth: Birth) -> None:
    for path, descriptor in ((birth.stdout, 1), (birth.stderr, 2)):
        if path:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(file, descriptor)
            os.close(file)
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]


def _stream(descriptor: int, like: object) -> io.TextIOWrapper:
    """Line by line, so that the lines of ranks that share a terminal stay whole, and nothing is lost with a rank."""
    file = open(descriptor, "wb", closefd=False)  # noqa: SIM115
    encoding, errors = getattr(like, "encoding", None), getattr(like, "errors", None)
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, line_buffering=True)


def _run(birth: Birth) -> int:
    """Run the script as Python would, and tell the launcher how it ended -> its exit code."""
    if birth.cpus:
        os.sched_setaffinity(0, birth.cpus)
    speaker = reporter(os.environ)
    if birth.stack_file:
        # Stays open for the process's life: the handler writes into it whenever the launcher asks.
        register(open(birth.stack_file, "w"))  # noqa: SIM115
        if birth.recorder:
            serve(Path(birth.stack_file), int(os.environ["RANK"]))
    else:
        faulthandler.enable()
    if speaker is not None:
        speaker.tell("hello", {})
    code = _exit_code(birth, speaker)
    if code == 0 and speaker is not None:
        speaker.tell("finished", {})
    return code


def _exit_code(birth: Birth, speaker: Reporter | None) -> int:
    try:
        _execute(birth)
        return _finish(0)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return _finish((stop.code or 0) & 0xFF)
        print(stop.code, file=sys.stderr)
        return _finish(1)
    except BaseException as error:
        words = last_words(_shown(error))
        if speaker is not None:
            speaker.words(words)
        _print(error)
        if isinstance(error, KeyboardInterrupt):
            return _finish(128 + signal.SIGINT)
        if is_victim(words.type, words.message):
            time.sleep(VICTIM_WAIT_S)
        return _finish(1)


def _shown(error: BaseException) -> BaseException:
    """The error without the frames of this file, which are no part of the person's script."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>"):
        frame = frame.tb_next
    return error.with_traceback(frame)


def _print(error: BaseException) -> None:
    hook = sys.excepthook
    try:
        hook(type(error), error, error.__traceback__)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()


def _finish(code: int) -> int:
    """What Python does at its end: wait for threads, call what was registered, write what is buffered."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    return code


def _execute(birth: Birth) -> None:
    """The script as `__main__`, with nothing of ours in its way."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "launch"]:
        del sys.modules[name]  # a script may have a package of that name, or import ours itself
    sys.argv = [birth.script, *birth.arguments]
    first = os.getcwd() if birth.is_module else str(Path(birth.script).resolve().parent)
    sys.path[:1] = [] if os.environ.get("PYTHONSAFEPATH") else [first]  # the launcher's own way to its packages
    if birth.is_module:
        runpy.run_module(birth.script, run_name="__main__", alter_sys=True)
        return
    if os.path.isdir(birth.script) or zipfile.is_zipfile(birth.script):
        del sys.path[0]
        runpy.run_path(birth.script, run_name="__main__")  # which puts it in front of the path
        return
    with open(birth.script, "rb") as file:
        code = compile(file.read(), birth.script, "exec")
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=birth.script, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def to_argument(birth: Birth) -> str:
    """A birth as one argument of this file's command line."""
    return json.dumps({**asdict(birth), "environment": {}})


def entry() -> NoReturn:
    """Where ranks are started anew: `python launch/boot.py rank FACTS [CPUS OF ALL LOCAL RANKS]`."""
    facts = json.loads(sys.argv[1])
    if len(sys.argv) > 2:  # under torchrun itself, which gives all ranks of a node the same arguments
        facts["cpus"] = json.loads(sys.argv[2])[int(os.environ["LOCAL_RANK"])]
    birth = Birth(**{**facts, "arguments": tuple(facts["arguments"]), "cpus": tuple(facts["cpus"])})
    die_with(os.getppid())
    _redirect(birth)
    code = _run(birth)
    speaker = reporter(os.environ)
    if speaker is not None:
        speaker.tell("exit", {"code": code})
    os._exit(code)
