"""What follows an attempt of a run: a line in the run's folder, and perhaps another attempt."""

import time
from collections.abc import Mapping
from pathlib import Path

from launch import attempts, run_folder, sbatch
from launch.deadline import Ending
from launch.events import LastWords
from launch.exit_codes import CRASHED
from launch.job import Job
from launch.private_files import read_json, write_json, write_private
from launch.slurm_text import SlurmError, ask
from launch.spec import Spec
from launch.verdict import Verdict

BEGUN = "begun.json"
STOPPING = "stopping.json"
SAFETY = 2.0
"""How much longer than ever before a stop may take."""
LEAST_MARGIN_S = 30.0
"""SLURM looks at the times of its jobs every half a minute."""


def output_of(spec: Spec) -> Path | None:
    """The folder of the training's own output, where its checkpoints are; None if it has none."""
    words = list(spec.arguments)
    for index, word in enumerate(words):
        if word == "--out" and index + 1 < len(words):
            return Path(spec.work_dir) / words[index + 1]
        if word.startswith("--out="):
            return Path(spec.work_dir) / word.partition("=")[2]
    return None


def margin_s(run: Path, default_s: float) -> float:
    """How long before a job's end its ranks are asked to stop: from how long that took before, if it has happened."""
    notes = [read_json(folder / STOPPING) for folder in run_folder.attempts(run)]
    took_s = [float(note["took_s"]) for note in notes if "took_s" in note]
    return max(LEAST_MARGIN_S, SAFETY * max(took_s)) if took_s else default_s


def take_up(spec: Spec, job: Job, number: int) -> Mapping[str, object]:
    """Note that an attempt begins -> the note: where it starts from, so that its progress is known at its end."""
    folder = Path(spec.run_dir) / run_folder.ATTEMPTS / str(number)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    step = attempts.last_step(output_of(spec)) if spec.resumable else None
    note = {"job_id": job.job_id, "hosts": job.nodes, "started_s": time.time(), "step": step}
    write_json(folder / BEGUN, note)
    return note


def missing_attempts(run: Path) -> None:
    """Add what is known of an attempt whose batch process ended without a word, as at a power failure."""
    known = {attempt.number for attempt in attempts.read(run)[0]}
    for folder in run_folder.attempts(run):
        number = int(folder.name)
        if number in known:
            continue
        note = read_json(folder / BEGUN)
        attempts.append(
            run,
            attempts.Attempt(
                number=number,
                job_id=note.get("job_id"),
                hosts=tuple(note.get("hosts", ())),
                started_s=note.get("started_s"),
                ended_s=None,
                code=CRASHED,
                cause="lost node",
                step_before=note.get("step"),
                step_after=None,
                signature="its batch process ended without a word",
            ),
        )


def record(spec: Spec, job: Job, verdict: Verdict, ending: Ending | None, note: Mapping[str, object]) -> int:
    """Store how an attempt ended, and have the next one follow if it is worth it -> the job's exit code."""
    run = Path(spec.run_dir)
    words = _culprits_words(verdict)
    number = len(attempts.read(run)[0])
    frame = words.traceback[-2] if words is not None and len(words.traceback) > 1 else ""
    step = note["step"]
    attempts.append(
        run,
        attempts.Attempt(
            number=number,
            job_id=job.job_id,
            hosts=job.nodes,
            started_s=verdict.started_s,
            ended_s=time.time(),
            code=verdict.code,
            cause=verdict.cause,
            step_before=step if isinstance(step, int) else None,
            step_after=attempts.last_step(output_of(spec)) if spec.resumable else None,
            exception=None if words is None else words.type,
            signature=attempts.signature(
                verdict.cause,
                None if words is None else words.type,
                words.message if words else verdict.sentence,
                frame,
            ),
        ),
    )
    if verdict.code == 0:
        write_private(run / run_folder.DONE, "")
        return 0
    asked = run_folder.stop_reason(run) is not None
    decision = attempts.decide(
        attempts.read(run)[0],
        go_on=spec.go_on,
        max_attempts=spec.max_attempts,
        cancelled=asked or (None if ending is None else ending == "cancelled"),
        requeued=ending == "requeued",
    )
    if decision.reason:
        print(f"ringmark: {decision.reason}", flush=True)
    _follow(decision.action, run, job)
    return verdict.code


def _culprits_words(verdict: Verdict) -> LastWords | None:
    return next((end.words for end in verdict.ends if end.rank in verdict.ranks and end.words is not None), None)


def _follow(action: str, run: Path, job: Job) -> None:
    try:
        if action == "requeue":
            ask(["scontrol", "requeue", job.job_id])
        elif action == "follow":
            queued = sbatch.queue(run, sbatch.options_again(run), after=job.job_id)
            print(f"ringmark: job {queued.job_id} goes on", flush=True)
    except (SlurmError, ValueError, OSError) as error:
        print(f"ringmark: the next attempt could not be queued: {error}; ringmark resubmit {run}", flush=True)
