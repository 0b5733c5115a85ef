"""`ringmark explain`: all that `ringmark submit` would do, and nothing done."""

import shlex
from collections.abc import Sequence

from launch import sbatch
from launch.job import srun_command
from launch.plan import Plan, Worker, plan
from launch.run_folder import SCRIPT
from launch.slurm_text import SlurmError
from launch.spec import Spec
from launch.submit import check, short
from launch.words import aligned

MOST_ROWS = 32


def explain(argv: Sequence[str], worker: Worker) -> int:
    """`ringmark explain OPTIONS -- PROGRAM`: print script, command lines, ranks and the predicted start -> exit code.

    Raises UsageError or ValueError for a person's mistakes, as `submit` does.
    """
    planned = plan(argv, worker, prog="ringmark explain")
    check(planned)
    script = short(planned.job.run_dir / SCRIPT)
    spec = planned.specs[0]
    parts = {
        f"# {script}": planned.script.rstrip().splitlines(),
        "# sbatch": folded(["sbatch", "--parsable", *planned.sbatch_options, str(planned.job.run_dir / SCRIPT)]),
        "# srun, on the first node": folded(srun_line(spec, planned.site.cpus_per_task)),
        "# ranks": rank_table(planned),
        "# variables": variables(planned),
        "# start": [start(planned)],
    }
    print("\n\n".join("\n".join([title, *lines]) for title, lines in parts.items()))
    return 0


def start(planned: Plan) -> str:
    """When SLURM would start the job, in its own words, or why it would not."""
    try:
        return sbatch.predict(planned.script, planned.sbatch_options) or "SLURM did not say"
    except SlurmError as error:
        return f"unknown: {error}"


def srun_line(spec: Spec, cpus_per_task: int | None) -> list[str]:
    """The step as the job will start it, if its GPUs are spread evenly."""
    per_node = 1 if spec.mode != "srun" else spec.nproc_per_node or 1
    tasks = [str(node) for node in range(spec.nodes) for _ in range(per_node)]
    return srun_command(spec, None if cpus_per_task is None else str(cpus_per_task), 0, tasks)


def folded(words: Sequence[str]) -> list[str]:
    """A command line on several, which can be pasted."""
    lines, line = [], ""
    for word in map(shlex.quote, words):
        if line and len(line) + len(word) > 100:
            lines.append(line)
            line = "   "
        line = f"{line} {word}" if line else word
    return [f"{each} \\" for each in lines] + [line]


def rank_table(planned: Plan) -> list[str]:
    """Who each rank is and what it gets of its node; what only SLURM decides is said so."""
    job, cpus = planned.job, planned.site.cpus_per_task
    if job.nproc_per_node is None:
        return [f"{job.gpus} ranks, one for each GPU: SLURM decides how many each of the {job.nodes} nodes gives"]
    per_node = job.nproc_per_node
    devices = min(per_node, planned.site.gpus_per_node)
    share = "its node's default" if cpus is None else f"{max(1, cpus // per_node)} of {cpus}"
    world = job.nodes * per_node
    rows = [("rank", "node", "local rank", "CPUs", "device", "variables")]
    for rank in range(min(world, MOST_ROWS)):
        node, local = divmod(rank, per_node)
        device = f"GPU {local}" if local < devices else "CPU"
        names = f"RANK={rank} LOCAL_RANK={local} GROUP_RANK={node} WORLD_SIZE={world} LOCAL_WORLD_SIZE={per_node}"
        rows.append((str(rank), str(node), str(local), share, device, names))
    lines = aligned(rows)
    return lines if world <= MOST_ROWS else [*lines, f"... and {world - MOST_ROWS} more alike"]


def variables(planned: Plan) -> list[str]:
    """What the ranks are given besides, and what the job does not get."""
    given = [f"{name}={shlex.quote(value)}" for name, value in planned.specs[0].environment.items()]
    at_home = [f"without {name}, which looks secret" for name in planned.at_home]
    return [text if text.isprintable() else ascii(text) for text in [*given, *at_home]] or ["as they are here"]
