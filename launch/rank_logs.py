"""A log for each rank in the run's folder, with the host in its name, shown on the terminal as it grows."""

from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs


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
        return LogsDest(stdouts=logs, stderrs=logs, tee_stdouts=logs, tee_stderrs={}, error_files=errors)
