"""A script under launch: `ringmark run tests/launched.py MODE`. It knows nothing of ringmark."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

RANK = int(os.environ["RANK"])
LAST = int(os.environ["WORLD_SIZE"]) - 1
LINE_LENGTH = 400
"""What ranks write into one pipe stays whole below 4,096 bytes, and what SLURM puts together from nodes below 1,024."""
ATTEMPT = int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def meet(timeout_s: float = 60) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    dist.barrier()


def fail_first(how: str) -> None:
    """The last rank fails; 20 ms after it is gone the others react, and end by themselves with another code.

    It is gone when whoever started it has seen its end: of two ends that it sees at once it cannot tell the order.
    """
    meet()
    pids = [torch.zeros(1, dtype=torch.int64) for _ in range(LAST + 1)]
    dist.all_gather(pids, torch.tensor([os.getpid()]))
    last = os.pidfd_open(int(pids[LAST]))
    dist.barrier()
    if RANK == LAST:
        if how == "raise":
            raise ValueError("the last rank is broken")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(42)
    select.select([last], [], [])
    deadline = time.monotonic() + 1
    while os.path.exists(f"/proc/{int(pids[LAST])}") and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.02)
    os._exit(7)


def sum_up() -> None:
    meet()
    total = torch.tensor([RANK])
    dist.all_reduce(total)
    print(json.dumps({"rank": RANK, "sum": int(total), "attempt": ATTEMPT, "pid": os.getpid()}), flush=True)


def show() -> None:
    """What a rank finds around it."""
    names = sorted(sys.modules["__main__"].__dict__)
    facts = {
        "rank": RANK,
        "argv": sys.argv,
        "env": dict(os.environ),
        "path": sys.path[:2],
        "cwd": os.getcwd(),
        "name": __name__,
        "has_main": "show" in names,
        "cpus": sorted(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "session": os.getsid(0) == os.getpid(),
        "launch": [name for name in sys.modules if name.partition(".")[0] == "launch"],
    }
    text = json.dumps(facts)
    for start in range(0, len(text), LINE_LENGTH):
        sys.stdout.write(f"facts {RANK} {text[start : start + LINE_LENGTH]}\n")  # print may write the line's end apart
        sys.stdout.flush()


def stay() -> None:
    """Live on, with a process of its own in a session of its own."""
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print("up", os.getpid(), flush=True)
    meet()
    time.sleep(1000)


def stop_inside_a_collective(timeout_s: float) -> None:
    """The last rank is stopped from outside while all wait for each other."""
    meet(timeout_s)
    if RANK == LAST:
        print("hangs", time.time(), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(1))


def skip_a_collective(timeout_s: float) -> None:
    meet(timeout_s)
    if RANK == LAST:
        print("hangs", time.time(), flush=True)
        time.sleep(1000)
    dist.all_reduce(torch.ones(1))


def leave_early() -> None:
    """One rank is done before the others, which still need it."""
    meet()
    if RANK == LAST:
        os._exit(0)
    dist.all_reduce(torch.ones(1))


def die_once(how: int) -> None:
    """Killed in the first attempt."""
    meet()
    if RANK == LAST and ATTEMPT == 0:
        os.kill(os.getpid(), how)
    sum_up_again()


def end_the_parent_once() -> None:
    """The process that started the ranks is killed in the first attempt."""
    meet()
    if ATTEMPT == 0:
        if RANK == LAST:
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)
    sum_up_again()


def sum_up_again() -> None:
    total = torch.tensor([RANK])
    dist.all_reduce(total)
    print(json.dumps({"rank": RANK, "sum": int(total), "attempt": ATTEMPT}), flush=True)


def wait_for_signal() -> None:
    """Ends with 75 on SIGUSR1, and never on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: print("not yet", flush=True))
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))
    meet()
    print("up", os.getpid(), flush=True)
    while True:
        time.sleep(0.1)


def be_deaf() -> None:
    """Hears no request to end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stay()


def leave_a_daemon(then: str) -> None:
    """A process that forks twice, with a session of its own, and runs nothing else."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            time.sleep(1000)
        os._exit(0)
    os.wait()
    print("up", os.getpid(), flush=True)
    if then == "stay":
        time.sleep(1000)


MODES = {
    "tie": lambda: fail_first("exit"),
    "raise": lambda: fail_first("raise"),
    "kill": lambda: fail_first("kill"),
    "sum": sum_up,
    "show": show,
    "stay": stay,
    "stop": lambda: stop_inside_a_collective(float(sys.argv[2])),
    "skip": lambda: skip_a_collective(float(sys.argv[2])),
    "early": leave_early,
    "die-once": lambda: die_once(signal.SIGKILL),
    "bereft": end_the_parent_once,
    "patient": wait_for_signal,
    "deaf": be_deaf,
    "daemon": lambda: leave_a_daemon(sys.argv[2]),
}

if __name__ == "__main__":
    MODES[sys.argv[1]]()
