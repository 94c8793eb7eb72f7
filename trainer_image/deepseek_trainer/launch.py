"""PID 1 of a worker: keeps the torchrun agent, passes a stop on to the ranks, translates how it all ended.

The agent itself never sees SIGTERM: it would kill its ranks after 30 s, while a last checkpoint
may take longer.  The ranks get it instead, agree, save, and end with code 0.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from deepseek_trainer.contract.names import ENV_TERMINATION_LOG, NOT_RETRYABLE, ExitCode, Paths
from deepseek_trainer.failure import Failure, exit_with, run
from deepseek_trainer.process import LAST_PROGRESS, RankFiles, StopFlag, die_with_parent

POLL_S = 0.1
# A fresh store for every round of ranks: in the agent's own, a rank that restarts may read the address
# of a peer that is dead, because the nodes do not count restarts alike.
AGENT_ENV = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
STOPPED = Failure(ExitCode.STOPPED, "Stopped", "asked to stop: every step that was done is saved")
STOPPED_EARLY = Failure(ExitCode.STOPPED, "Stopped", "asked to stop: no step was done since the last checkpoint")
IDLE_STOP_S = 20.0  # a stop that comes before any rank exists has nothing to save


class Launcher:
    """One worker from start to end."""

    def __init__(self, paths: Paths) -> None:
        self._failure_file = paths.scratch / "failure.json"
        self._stopped_file = paths.scratch / "stopped"
        self._ranks = RankFiles(paths.scratch)
        self._told: set[int] = set()
        self._stop = StopFlag()
        paths.scratch.mkdir(parents=True, exist_ok=True)
        for stale in (self._failure_file, self._stopped_file):
            stale.unlink(missing_ok=True)
        self._ranks.clear()

    def run(self) -> Failure | None:
        """None if the training is done, else how it ended."""
        self._stop = StopFlag.on_signal()
        command = [sys.executable, "-m", "deepseek_trainer.agent"]
        agent = subprocess.Popen(command, env=os.environ | AGENT_ENV, start_new_session=True)
        while agent.poll() is None:
            time.sleep(POLL_S)
            if self._stop.is_set:
                self._pass_stop_on()
            if self._is_hopeless() or self._stopped_without_ranks():
                agent.kill()  # its ranks die with it
        return self._outcome(agent.returncode)

    def _pass_stop_on(self) -> None:
        for pid in set(self._ranks.pids()) - self._told:
            self._told.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _stopped_without_ranks(self) -> bool:
        since = self._stop.since
        return since is not None and not self._told and time.monotonic() - since > IDLE_STOP_S

    def _is_hopeless(self) -> bool:
        """The agent would restart a rank that told that a restart cannot help."""
        failure = Failure.load(self._failure_file)
        return failure is not None and failure.exit_code in NOT_RETRYABLE

    def _outcome(self, agent_code: int) -> Failure | None:
        failure = Failure.load(self._failure_file)
        if failure is not None and failure.exit_code in NOT_RETRYABLE:
            return failure
        if self._stopped_file.exists():
            return STOPPED
        if self._stop.is_set and not self._told:
            return STOPPED_EARLY
        if agent_code == 0:
            return None
        return failure or Failure.of_exit(agent_code)


def main() -> None:
    die_with_parent()
    paths = Paths.from_env()
    failure = Launcher(paths).run()
    if failure is not None:
        exit_with(failure)
    last_progress = paths.scratch / LAST_PROGRESS
    if last_progress.exists() and (log := os.environ.get(ENV_TERMINATION_LOG)):
        Path(log).write_bytes(last_progress.read_bytes())  # the server of /progress is gone


if __name__ == "__main__":
    run(main)
