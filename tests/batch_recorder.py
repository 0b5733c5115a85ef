"""A program that stands where a site's `python` does, and plays launch.batch: it writes down what the job was given.

The first of the script's own arguments says how it goes on: `end` with the code that follows, `fail` with a verdict
that blames rank 1, or `wait` until the file `stop` is there; `linger` takes 5 s more to save.
"""

import json
import os
import sys
import time
from pathlib import Path

RECORD = "seen.json"
LOG_LINES = ("first \x1b[31mred\x1b[0m line", "tab\there \x1b]0;title\x07\x07", "last")


def install(folder: Path, root: Path) -> str:
    """Make an executable that runs this file -> its path, for `python` of a site."""
    program = folder / "recorder"
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from tests.batch_recorder import main; sys.exit(main())"
    program.write_text(f"#!{sys.executable} -IS\n{code}\n")
    program.chmod(0o755)
    return str(program)


def main() -> int:
    """Read the spec, note it beside it, write logs as ranks would, and do what its arguments say."""
    spec_path = Path(sys.argv[sys.argv.index("--spec") + 1])
    text = spec_path.read_text(encoding="utf-8")
    spec = json.loads(text)
    run = spec_path.parent
    attempts = run / "attempts"
    attempts.mkdir(exist_ok=True)
    folder = attempts / str(len(list(attempts.iterdir())))
    (folder / "logs").mkdir(parents=True)
    seen = {"argv": sys.argv[1:], "spec": spec, "environment": dict(os.environ), "cwd": os.getcwd()}
    (folder / RECORD).write_text(json.dumps(seen))
    for rank in range(2):
        lines = [f"rank {rank} attempt {folder.name}: {line}" for line in LOG_LINES]
        (folder / "logs" / f"rank-{rank}-n{rank + 1}.log").write_text("\n".join(lines) + "\n")
    print(f"recorder: attempt {folder.name} of job {os.environ.get('SLURM_JOB_ID')} \x1b[1mbold\x1b[0m", flush=True)
    how, *rest = spec["arguments"] or ("end", "0")
    if how in ("wait", "linger"):
        return _wait(run, 5.0 * (how == "linger"))
    if how == "fail":
        _blame(folder)
    code = int(rest[0]) if how in ("end", "fail") and rest else 0
    if code == 0:
        (run / "DONE").touch()
    return code


def _wait(run: Path, save_s: float) -> int:
    """Until somebody asks for a stop; then save, and end as a stopped run does."""
    deadline = time.monotonic() + 60
    while not (run / "stop").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(save_s)
    print("recorder: stopped because " + (run / "stop").read_text().strip(), flush=True)
    return 75


def _blame(folder: Path) -> None:
    from launch import verdict
    from launch.events import NodeFacts, RankEnd

    now_s = time.time()
    ends = [
        RankEnd(rank=0, local_rank=0, host="n1", pid=1, time_s=now_s, code=-15, asked=True),
        RankEnd(rank=1, local_rank=0, host="n2", pid=2, time_s=now_s - 1, code=-9, log=f"{folder}/logs/rank-1-n2.log"),
    ]
    nodes = [NodeFacts(host="n1", node_rank=0), NodeFacts(host="n2", node_rank=1)]
    verdict.write(verdict.judge(ends, nodes, started_s=now_s - 5, world_size=2), folder)
