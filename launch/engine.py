"""torch's elastic engine under the launcher: torchrun's own parser and rounds, our rendezvous and our processes."""

import logging
import os
import shutil
import socket
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.run import config_from_args, get_args_parser, parse_min_max_nnodes

from launch import rendezvous
from launch.addresses import interface_of
from launch.cpus import CpuMap, compact, gpu_bus_ids, plan
from launch.nursery import NotBornError, Nursery
from launch.oom import OomCounter
from launch.rank_logs import RankLogs
from launch.ranks import Crew, python_is_ours, replace_engine_processes
from launch.rendezvous import RestartsOverError
from launch.watch import Outcome, Watch
from launch.witness import Witness

if TYPE_CHECKING:
    from launch.agent import Launcher

SILENT = "SIGQUIT"
"""The one signal that is left to torch's own handler; all others are the launcher's."""
READY_TIMEOUT_S = 120.0
SHUTDOWN_S = 30
NOISY = ("torch.distributed.elastic", "torch.distributed.run", "torch.distributed.launcher.api")


def parse(launcher: "Launcher") -> Any:
    """torchrun's options as torchrun reads them, PET_* variables among them; exits with its words for a mistake."""
    parser = get_args_parser()
    parser.prog = "ringmark run"
    options = parser.parse_args(launcher.line.argv())
    if options.signals_to_handle == parser.get_default("signals_to_handle"):
        options.signals_to_handle = SILENT
    if not options.monitor_interval > 0:
        raise ValueError(f"expected --monitor-interval as seconds above 0, got {options.monitor_interval}; write 0.1")
    if options.master_port is not None and not 0 <= options.master_port < 1 << 16:
        raise ValueError(f"expected --master-port from 0 to 65535, got {options.master_port}; 0 is any that is free")
    return options


def settle_rendezvous(options: Any, company: rendezvous.Company | None) -> None:
    """Have the engine meet at our place, unless a person chose another rendezvous of torch's."""
    chosen = bool(options.rdzv_endpoint) or options.rdzv_backend != "static"
    if company is None and _one_node(options) and (not chosen or options.standalone):
        company = rendezvous.alone(options.master_port or 0)
    if company is None:
        if options.master_port is None:
            options.master_port = 29500  # torchrun's own default
        return
    rendezvous.register(company)
    options.rdzv_backend, options.rdzv_endpoint, options.standalone = rendezvous.BACKEND, "", False
    if options.rdzv_id == "none":
        options.rdzv_id = uuid.uuid4().hex


def _one_node(options: Any) -> bool:
    """Whether no other node is to take part. Raises ValueError if that is not what --nnodes tells."""
    try:
        return bool(parse_min_max_nnodes(options.nnodes) == (1, 1))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"expected --nnodes as a number or MIN:MAX, got {options.nnodes!r}; write 2") from error


def variables(options: Any, threads: str) -> dict[str, str]:
    """What ranks get beside torchrun's variables."""
    found = {"OMP_NUM_THREADS": threads, "TORCHELASTIC_SIGNALS_TO_HANDLE": options.signals_to_handle}
    if options.rdzv_backend == rendezvous.BACKEND and _one_node(options):
        # What listens for its peers does so where nobody else can connect.
        loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        found |= {name: value for name, value in loopback.items() if name not in os.environ}
    elif options.rdzv_backend == "static" and "GLOO_SOCKET_IFNAME" not in os.environ:
        # gloo would take the interface of this host's name, which on many machines is loopback.
        interface = _interface_to((options.rdzv_endpoint or options.master_addr).partition(":")[0])
        found |= {} if interface is None else {"GLOO_SOCKET_IFNAME": interface}
    return found


def _interface_to(host: str) -> str | None:
    """The network interface through which the first node is reached; None if that cannot be told."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # nothing is sent
            return interface_of(probe.getsockname()[0])
    except (OSError, ValueError):
        return None


def cpu_map(ranks: int, environ: dict[str, str]) -> CpuMap:
    """Which CPUs each rank of this node gets, of those that are really allowed."""
    asked = environ.get("SLURM_CPUS_PER_TASK", "")
    return plan(
        ranks,
        allowed=sorted(os.sched_getaffinity(0)),
        gpus=gpu_bus_ids(environ)[:ranks],
        asked=int(asked) if asked.isdigit() else None,
    )


def run_engine(launcher: "Launcher") -> Outcome:
    """Run torch's engine over all its rounds.

    Raises ValueError for what cannot be started, NotBornError for ranks that cannot be forked, or met.
    """
    company = launcher.company
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it reports what the verdict says
    options = parse(launcher)
    given_threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or the engine would tell at length that it does
    settle_rendezvous(options, company)
    own_logs = settle_logs(options, launcher)
    options.run_path = False  # ranks run a script as `python SCRIPT` does, with no interpreter started for each
    try:
        config, command, arguments = config_from_args(options)
    except (AssertionError, OSError, ValueError) as error:
        raise ValueError(f"expected options as torchrun takes them, got: {error}; see ringmark run --help") from error
    if options.no_python and shutil.which(str(command)) is None:
        raise ValueError(f"expected a command after --no-python, got {command}, which is not there or cannot be run")
    launcher.begin()
    host = launcher.host
    if own_logs is not None:
        config.logs_specs = RankLogs(own_logs, host)
        config.log_line_prefix_template = config.log_line_prefix_template or "[rank ${rank}] "
    cpus = cpu_map(config.nproc_per_node, dict(os.environ))
    threads = given_threads or str(cpus.threads)
    oom = OomCounter()
    launcher.witness = Witness(launcher.folder, host, launcher.nursery)
    launcher.witness.on_end = launcher.on_end
    nursery, how = settle_nursery(launcher, launcher.witness, command)
    launcher.say(("" if company is None else f"{host}: ") + _started(config.nproc_per_node, how, cpus, threads))
    launcher.watch = Watch(
        witness=launcher.witness,
        host=host,
        hang_timeout_s=launcher.hang_timeout_s,
        logs=own_logs,
        session=launcher.guardian.watch,
        failed=launcher.round_failed,
    )
    crew = Crew(
        watch=launcher.watch,
        nursery=nursery,
        folder=launcher.folder,
        wraps=not options.no_python,
        shutdown_s=options.shutdown_timeout or SHUTDOWN_S,
        slices=() if "no-pin" in launcher.line.ours else cpus.slices,
        environment=variables(options, threads),
        met={} if company is None else company.environment,
    )
    replace_engine_processes(crew)
    _run(config, command, arguments)
    node_rank = 0 if company is None else company.node_rank
    return launcher.watch.outcome(node_rank, oom.increase(), launcher.signal_names())


def settle_logs(options: Any, launcher: "Launcher") -> Path | None:
    """The folder of our own logs, if the run has a folder and a person asked for no logs of torchrun's."""
    if options.log_dir or options.redirects != "0" or options.tee != "0":
        return None
    options.log_dir = str(launcher.folder / "torch")  # it would leave a folder behind
    return None if launcher.run_dir is None else launcher.run_dir / "logs"


def settle_nursery(launcher: "Launcher", witness: Witness, command: object) -> tuple[Nursery | None, str | None]:
    """The process that forks the ranks, or None and why they are started anew."""
    if launcher.nursery is None:
        return None, launcher.why_plain
    if not python_is_ours(command):
        return None, f"{command} is another interpreter"
    ready = witness.wait_ready(READY_TIMEOUT_S)
    if ready is None or ready["ready"] == 0:
        return None, "the process that was to fork them is gone"
    if ready["ready"] > 1:
        return None, f"what was imported runs {ready['ready']} threads, which a fork would lose"
    if ready["cuda"]:
        return None, "what was imported has touched a GPU"
    return launcher.nursery, None


def _run(config: LaunchConfig, command: Any, arguments: list[str]) -> None:
    try:
        elastic_launch(config=config, entrypoint=command)(*arguments)
    except ChildFailedError:
        return  # the verdict tells
    except RestartsOverError:
        return  # other nodes have used them up
    except (NotBornError, ValueError):
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
        raise NotBornError(f"torch's engine could not start ranks or bring nodes together: {what}") from error


def _started(ranks: int, why_plain: str | None, cpus: CpuMap, threads: str) -> str:
    how = "forked after one import of torch" if why_plain is None else f"started one by one ({why_plain})"
    slices = " | ".join(compact(each) for each in cpus.slices[:8]) + (" ..." if ranks > 8 else "")
    plural = "rank" if ranks == 1 else "ranks"
    text = f"{ranks} {plural} {how}; CPUs {slices}; OMP_NUM_THREADS {threads}"
    return text if cpus.warning is None else f"{text}\nringmark: {cpus.warning}"
