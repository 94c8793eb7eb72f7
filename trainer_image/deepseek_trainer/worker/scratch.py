"""Small files by which the processes of one worker inform each other, in its scratch directory."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepseek_trainer.storage.durable import replace_file
from deepseek_trainer.worker.failure import Failure


class Scratch:
    """The files of the round of ranks that runs now.  A round lasts until torchrun restarts the ranks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.failure = directory / "failure.json"  # why the round ended
        self.stopped = directory / "stopped"  # the ranks agreed to stop, and saved
        self._progress = directory / "progress.json"  # on node 0: the last answer of /progress
        self._ranks = directory / "ranks"  # process ids, one file for each rank
        self._rungs = directory / "rungs"  # how far the job's ladder was climbed; outlives a round

    def clear(self) -> None:
        """Remove everything, before the first round."""
        self._remove(self.failure, self.stopped, self._progress, self._rungs, *self._rank_files())
        with suppress(FileNotFoundError):
            self._ranks.rmdir()

    def begin_round(self) -> None:
        """Forget the last round, except for an end that the launcher may not have seen yet: a final failure, or a stop.

        torchrun starts a round even after a stop, if a rank was killed on its way out.
        """
        failure = Failure.load(self.failure)
        is_final = failure is not None and failure.ends_worker
        self._remove(*self._rank_files(), *(() if is_final else (self.failure,)))
        if not (is_final or self.stopped.exists()):
            self._remove(self._progress)
        self._ranks.mkdir(parents=True, exist_ok=True)

    @property
    def has_begun(self) -> bool:
        """Whether ranks have been started, or are about to be."""
        return self._ranks.exists()

    def record(self, local_rank: int) -> int:
        """Record this process's id, so that the launcher reaches it; returns how often this rank has restarted here.

        torchrun's own count leaves out the restarts that a rank of another node caused.
        """
        self._ranks.mkdir(parents=True, exist_ok=True)
        with (self.directory / f"starts-{local_rank}").open("a") as starts:
            starts.write(".")
            restarts = starts.tell() - 1
        (self._ranks / str(local_rank)).write_text(str(os.getpid()))
        return restarts

    @property
    def rungs(self) -> int:
        try:
            return int(self._rungs.read_text())
        except FileNotFoundError:
            return 0

    def climb_to(self, rungs: int) -> None:
        """Remember that this node has climbed `rungs` rungs, unless it has climbed further."""
        if rungs > self.rungs:
            replace_file(self._rungs, str(rungs).encode())

    def trace(self, rank: int) -> Path:
        """The file of a rank's last profile."""
        return self.directory / f"profile-rank-{rank}.json.gz"

    def leave_progress(self, progress: bytes) -> None:
        self._progress.write_bytes(progress)

    def last_progress(self) -> dict[str, Any]:
        """The last answer of /progress, whose server is gone by now.  Empty on all nodes but the first."""
        try:
            return dict(json.loads(self._progress.read_bytes()))
        except (FileNotFoundError, ValueError):  # a ValueError: a rank was killed while it wrote
            return {}

    def pids(self) -> tuple[int, ...]:
        """The process ids of the recorded ranks, which may have ended."""
        pids = []
        for file in self._rank_files():
            with suppress(FileNotFoundError, ValueError):  # a new round has begun, or the file is being written
                pids.append(int(file.read_text()))
        return tuple(pids)

    def _remove(self, *files: Path) -> None:
        for file in files:
            file.unlink(missing_ok=True)

    def _rank_files(self) -> tuple[Path, ...]:
        return tuple(self._ranks.glob("*"))
