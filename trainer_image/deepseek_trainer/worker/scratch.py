"""What the processes of one worker tell each other: small files in its scratch directory."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepseek_trainer.storage.durable import replace_file
from deepseek_trainer.worker.failure import Failure


class Scratch:
    """Files of the round of ranks that runs now.  A round lasts until torchrun restarts the ranks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.failure = directory / "failure.json"  # why the round ended
        self.stopped = directory / "stopped"  # the ranks agreed to stop, and saved
        self._progress = directory / "progress.json"  # on node 0: what /progress told last
        self._ranks = directory / "ranks"  # process ids, one file for each rank
        self._rungs = directory / "rungs"  # how far the job's ladder was climbed; outlives a round

    def clear(self) -> None:
        """Before the first round: as if there had been none."""
        self._remove(self.failure, self.stopped, self._progress, self._rungs, *self._rank_files())
        with suppress(FileNotFoundError):
            self._ranks.rmdir()

    def begin_round(self) -> None:
        """Forget the last round, but not an end that the launcher may not have seen yet: a final failure, or a stop.

        torchrun starts a round after a stop, too, where a rank was killed on its way out.
        """
        failure = Failure.load(self.failure)
        is_final = failure is not None and failure.ends_worker
        self._remove(*self._rank_files(), *(() if is_final else (self.failure,)))
        if not (is_final or self.stopped.exists()):
            self._remove(self._progress)
        self._ranks.mkdir(parents=True, exist_ok=True)

    @property
    def has_begun(self) -> bool:
        """Whether ranks were started, or are about to be."""
        return self._ranks.exists()

    def record(self, local_rank: int) -> int:
        """Record this process, by which the launcher reaches it; how often there was one in its place, in this pod.

        torchrun's own count leaves out restarts that another node's rank brought about.
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
        """Remember it, unless this node has climbed as far."""
        if rungs > self.rungs:
            replace_file(self._rungs, str(rungs).encode())

    def trace(self, rank: int) -> Path:
        """Where a rank leaves its last profile."""
        return self.directory / f"profile-rank-{rank}.json.gz"

    def leave_progress(self, progress: bytes) -> None:
        self._progress.write_bytes(progress)

    def last_progress(self) -> dict[str, Any]:
        """What the last round left; its server of /progress is gone.  Empty on all nodes but the first."""
        try:
            return dict(json.loads(self._progress.read_bytes()))
        except (FileNotFoundError, ValueError):  # cut short, where a rank was killed while it wrote
            return {}

    def pids(self) -> tuple[int, ...]:
        """Process ids of the ranks that were recorded; they may have ended."""
        pids = []
        for file in self._rank_files():
            with suppress(FileNotFoundError, ValueError):  # a new round begins; being written
                pids.append(int(file.read_text()))
        return tuple(pids)

    def _remove(self, *files: Path) -> None:
        for file in files:
            file.unlink(missing_ok=True)

    def _rank_files(self) -> tuple[Path, ...]:
        return tuple(self._ranks.glob("*"))
