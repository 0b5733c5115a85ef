"""What `ringmark submit` is asked for: its options become a `Plan`, which writes nothing."""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch import containers, run_folder, sbatch, spec, sweep
from launch.argv import UsageError, parse
from launch.secrets import secret_variables
from launch.sites import Site, check_environment, load_site
from launch.slurm_text import scrubbed
from launch.words import can_be_argument

Worker = Callable[[Sequence[str], int], tuple[str, ...]]
"""Makes a module and its arguments of `train ...` or `bench ...`, checked for that many ranks."""


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Queue a job on a SLURM cluster; --env NAME=VALUE, which may be repeated, is read before these."""

    site: str
    """Cluster: a file of slurm/sites, or a path to such a TOML file."""
    nodes: int = 1
    """Nodes of the cluster to run on."""
    nproc_per_node: int | None = None
    """Ranks on each node; by default one per GPU of the site's nodes, or 1 without GPUs."""
    gpus: int | None = None
    """GPUs of all nodes together, one rank each, where the nodes may give unequal numbers of them."""
    mode: spec.Mode = "agent"
    """Who starts the ranks: a launcher of ringmark on each node, srun (one task per rank), or plain torchrun."""
    name: str | None = None
    """Name in the queue; by default ringmark- and the program's name."""
    time: str | None = None
    """Wall-clock limit, [days-]hours:minutes:seconds; by default the site's."""
    run_dir: Path = Path("runs/slurm")
    """Folder in which the run gets a folder of its own, on a file system that the nodes see too."""
    requeue: bool = False
    """After a stop with a checkpoint, a preemption or a lost node, put the same job into the queue again."""
    follow: bool = False
    """The same by a new job, which SLURM does not hold back for two minutes."""
    resumable: bool = False
    """Whether a script of `run` saves and exits with 75 after SIGUSR1, and goes on when it is started again."""
    array: str | None = None
    """A sweep: how many equal tasks, or a file with one JSON list of more arguments for each."""
    at_once: int | None = None
    """How many tasks of a sweep may run at the same time."""
    chain: int = 1
    """Jobs that run one after another until the run is done."""
    exclude: str | None = None
    """Nodes that must not be used, such as n3,rack1-[4-6]."""
    keep_env: tuple[str, ...] = ()
    """Variables that the job gets although they look like secrets; others like them stay here."""
    hang_timeout: float | None = None
    """Seconds without progress after which all ranks are shown and ended; by default never."""
    preflight: bool = False
    """Have `ringmark doctor` look at all nodes of the job first, which takes about 10 s, and end it if one is bad."""
    max_restarts: int = 0
    """Restarts of all ranks within a job after one has failed."""
    max_attempts: int = 100
    """Attempts of the run in all, with --requeue or --follow."""
    dry_run: bool = False
    """Print the batch script and do nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run as it would be submitted."""

    argv: tuple[str, ...]
    options: SubmitOptions
    site: Site
    job: sbatch.Job
    specs: tuple[spec.Spec, ...]
    """One, or one for each task of a sweep."""
    at_home: tuple[str, ...] = ()
    """Variables that look like secrets, which the job does not get."""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the job inherits."""

    @property
    def sbatch_options(self) -> list[str]:
        """sbatch's options, one word each."""
        return sbatch.options(self.job, self.site)

    @property
    def script(self) -> str:
        """The batch script."""
        return sbatch.render(self.job, self.site)


def ranks_of(options: SubmitOptions, site: Site) -> int | None:
    """Ranks on each node; None is one for each GPU, which may differ."""
    if options.gpus is not None:
        return None
    return (site.gpus_per_node or 1) if options.nproc_per_node is None else options.nproc_per_node


def split(argv: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Variables of --env, the other options, and the words behind the first `--`. Raises UsageError."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    own, inner, environment, rest = iter(words[:cut]), words[cut + 1 :], {}, []
    for word in own:
        if word != "--env" and not word.startswith("--env="):
            rest.append(word)
            continue
        pair = word.removeprefix("--env=") if "=" in word else next(own, "")
        name, mark, value = pair.partition("=")
        if not mark:
            raise UsageError(f"expected --env NAME=VALUE, got {pair!r}; for example --env NCCL_IB_HCA=mlx5_0,mlx5_1")
        environment[name] = value
    return environment, rest, inner


def program(words: Sequence[str], ranks: int, options: SubmitOptions, worker: Worker) -> dict[str, object]:
    """What runs on every rank, as fields of a spec. Raises UsageError, and what `worker` raises."""
    if words[:1] == ["run"]:
        is_module = words[1:2] in (["-m"], ["--module"])
        rest = words[2:] if is_module else words[1:]
        if not rest or (rest[0].startswith("-") and not is_module) or not rest[0]:
            got = shlex.join(rest[:1]) or "nothing"
            raise UsageError(f"expected run SCRIPT ARGS or run -m MODULE ARGS, got {got}; options of ours go before --")
        script = rest[0] if is_module else str(Path.cwd() / Path(rest[0]).expanduser())
        named = {"script": script, "is_module": is_module, "resumable": options.resumable}
        return {**named, "arguments": tuple(rest[1:])}
    module, *arguments = worker(words, ranks)
    resumable = module == "launch.train"
    if resumable and (options.requeue or options.follow or options.chain > 1) and "--resume" not in arguments:
        raise UsageError("expected train --out DIR --resume auto in a run that goes on, got no --resume; add it")
    return {"script": module, "is_module": True, "resumable": resumable, "arguments": tuple(arguments)}


def plan(argv: Sequence[str], worker: Worker, *, prog: str = "ringmark submit") -> Plan:
    """The run that a command line asks for; writes nothing. Raises UsageError or ValueError for a person's mistakes."""
    environment, own, inner = split(argv)
    description = "Run `train ...`, `bench ...`, `run SCRIPT ...` or `run -m MODULE ...`, given after --, as a job. "
    description += "--env NAME=VALUE, which may be repeated, gives the ranks a variable."
    options = parse(SubmitOptions, own, prog=prog, description=description)
    site = load_site(options.site)
    check_together(options)
    check_environment("--env", environment)
    nproc = ranks_of(options, site)
    ranks = options.gpus or options.nodes * (nproc or 1)
    more = sweep.arguments(options.array)
    programs = [program([*inner, *extra], ranks, options, worker) for extra in (more or [()])]
    for each in programs:
        check_words([str(each["script"]), *each["arguments"]])  # type: ignore[misc]
    name = (
        options.name
        if options.name is not None
        else default_name(str(programs[0]["script"]), bool(programs[0]["is_module"]))
    )
    run = run_folder.propose(options.run_dir.expanduser().absolute(), name)
    job = sbatch.Job(
        name=name,
        nodes=options.nodes,
        nproc_per_node=nproc,
        gpus=options.gpus,
        run_dir=run,
        time=options.time,
        exclude=options.exclude,
        requeue=options.requeue or options.follow,
        tasks=None if more is None else len(more),
        at_once=options.at_once,
    )
    variables = {**site.environment, **environment}
    at_home = secret_variables(os.environ, options.keep_env)
    return Plan(
        argv=tuple(argv),
        options=options,
        site=site,
        job=job,
        specs=tuple(
            specify(job, site, options, {**each, "environment": variables, "run_dir": str(place)})
            for each, place in zip(programs, sweep.folders(run, more), strict=True)
        ),
        at_home=tuple(at_home),
        environ=scrubbed(os.environ, without=at_home),
    )


def specify(job: sbatch.Job, site: Site, options: SubmitOptions, fields: Mapping[str, object]) -> spec.Spec:
    """What the job reads: the program's own `fields`, and what options and site say."""
    folders = [str(job.root), str(job.run_dir), str(Path.cwd())]
    variables = list(fields["environment"])  # type: ignore[call-overload]
    return spec.Spec(
        name=job.name,
        nodes=job.nodes,
        nproc_per_node=job.nproc_per_node,
        mode=options.mode,
        work_dir=str(Path.cwd()),
        python=site.python if site.container == "none" else site.container_python,
        root=str(job.root),
        interface=site.interface,
        max_restarts=options.max_restarts,
        hang_timeout_s=options.hang_timeout,
        stop_margin_s=float(site.stop_margin_s),
        go_on="follow" if options.follow else "requeue" if options.requeue else "never",
        max_attempts=options.max_attempts,
        preflight=options.preflight,
        exclude=tuple(filter(None, [site.exclude, options.exclude])),
        wrap=containers.wrap(site, folders),
        srun_options=containers.srun_options(site, folders, variables),
        **fields,  # type: ignore[arg-type]
    )


def check_together(options: SubmitOptions) -> None:
    """Raise UsageError for options that contradict each other or mean nothing."""
    pairs = (
        (options.requeue and options.follow, "one of --requeue and --follow", "both"),
        (options.gpus is not None and options.nproc_per_node is not None, "one of --gpus and --nproc-per-node", "both"),
        (options.array is not None and options.chain > 1, "one of --array and --chain", "both"),
        # A follow-up would be a whole new array.
        (options.array is not None and options.follow, "--requeue with --array", "--follow"),
        (options.at_once is not None and options.array is None, "--at-once with --array", "it alone"),
        (not 1 <= options.chain <= 100, "--chain from 1 to 100", options.chain),
        (options.max_restarts < 0 or options.max_attempts < 1, "counts that are not negative", "such a one"),
        (options.hang_timeout is not None and not options.hang_timeout > 0, "--hang-timeout above 0 s", "less"),
    )
    for wrong, expected, got in pairs:
        if wrong:
            raise UsageError(f"expected {expected}, got {got}; see ringmark submit --help")


def check_words(words: Sequence[str]) -> None:
    """Raise UsageError for words that no process can be given."""
    for word in words:
        if not can_be_argument(word):
            raise UsageError(f"expected arguments without NUL and half characters, got {word[:80]!r}; change it")


def default_name(script: str, is_module: bool) -> str:
    """A name in the queue after the program's."""
    stem = script.rpartition(".")[2] if is_module else Path(script).stem
    return "ringmark-" + (re.sub(r"[^A-Za-z0-9_.-]", "_", stem)[:40] or "script")
