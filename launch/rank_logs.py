"""A log for each rank in the run's folder, with the host in its name, shown on the terminal as it grows."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs

from launch.tail import Tail

SHOW_EVERY_S = 0.1


class RankLogs(LogsSpecs):
    """torch's interface for where the output of ranks goes: both streams of a rank into one file."""

    def __init__(self, folder: Path, host: str) -> None:
        super().__init__(log_dir=str(folder))
        self._folder, self._host, self._round = folder, host, -1
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def root_log_dir(self) -> str:
        """The folder of the logs."""
        return str(self._folder)

    def path(self, rank: str) -> Path:
        """The log of a rank; a restart goes on in the same file."""
        return self._folder / f"rank-{rank}-{self._host}.log"

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Paths by local rank."""
        self._round += 1
        logs, errors = {}, {}
        for local_rank, environment in envs.items():
            logs[local_rank] = str(self.path(environment["RANK"]))
            errors[local_rank] = str(self._folder / f"error-{self._round}-{environment['RANK']}.json")
            environment["TORCHELASTIC_ERROR_FILE"] = errors[local_rank]
        return LogsDest(stdouts=logs, stderrs=logs, tee_stdouts={}, tee_stderrs={}, error_files=errors)

    def shown(self, logs: Mapping[int, str], labels: Mapping[int, str], out: TextIO) -> "Shown":
        """The logs of a round by local rank, shown from where they end now: earlier rounds were shown already."""
        paths = {local_rank: Path(log) for local_rank, log in logs.items()}
        return Shown(
            [
                Tail(path, labels.get(local_rank, ""), offset=path.stat().st_size if path.exists() else 0)
                for local_rank, path in paths.items()
            ],
            out,
        )


class Shown:
    """Files copied to a stream as they grow, each line with its label, by a thread of its own."""

    def __init__(self, tails: Sequence[Tail], out: TextIO) -> None:
        self._tails, self._out = tails, out
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="shown-logs", daemon=True)

    def start(self) -> None:
        """Begin to show."""
        self._thread.start()

    def stop(self) -> None:
        """Show what is still missing, and end; once more is harmless."""
        self._over.set()
        self._thread.join()

    def _show(self) -> None:
        over = False
        while not over:
            over = self._over.wait(SHOW_EVERY_S)  # before the last look, so that nothing comes after it
            text = "".join(f"{tail.label}{line}\n" for tail in self._tails for line in tail.lines(last=over))
            encoding = self._out.encoding or "utf-8"
            try:
                self._out.write(text.encode(encoding, "backslashreplace").decode(encoding))
                self._out.flush()
            except (OSError, ValueError):
                return  # the terminal is gone, or closed; the logs have everything
