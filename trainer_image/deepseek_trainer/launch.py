"""PID 1 of a worker: keeps the torchrun agent, passes signals on to the ranks, translates how it all ended.

The agent itself never sees SIGTERM: it would kill its ranks after 30 s, while a last checkpoint
may take longer.  The ranks get it instead, agree, save, and end with code 0.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from deepseek_trainer.contract.names import ENV_TERMINATION_LOG, ExitCode, Paths
from deepseek_trainer.failure import Failure, exit_with, run
from deepseek_trainer.process import PROFILE_SIGNAL, ProfileFlag, StopFlag, die_with_parent, forbid_core_dumps
from deepseek_trainer.scratch import Scratch

AGENT = (sys.executable, "-m", "deepseek_trainer.agent")
POLL_S = 0.1
IDLE_STOP_S = 10.0  # without a living rank; one that was just started takes seconds to hear a stop
SAVED_STOP_S = 3.0  # without a living rank, once they have saved: only the agents' farewell is left
# A fresh store for every round of ranks: in the agent's own, a rank that restarts may read the address
# of a peer that is dead, because the nodes do not count restarts alike.
AGENT_ENV = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
STOPPED = Failure(ExitCode.STOPPED, "Stopped", "asked to stop: every step that was done is saved")
STOPPED_IDLE = Failure(ExitCode.STOPPED, "Stopped", "asked to stop while no rank ran: the last checkpoint is the state")


class Launcher:
    """One worker from start to end."""

    def __init__(
        self, scratch: Scratch, stop: StopFlag, command: Sequence[str] = AGENT, profile: ProfileFlag | None = None
    ) -> None:
        self._scratch, self._stop, self._command = scratch, stop, command
        self._profile = profile or ProfileFlag()
        self._told: set[int] = set()
        self._last_alive = 0.0  # time.monotonic() when a rank was last seen after a stop [s]
        scratch.clear()

    def run(self) -> Failure | None:
        """None if the training is done, else how it ended."""
        agent = subprocess.Popen(self._command, env=os.environ | AGENT_ENV, start_new_session=True)
        while agent.poll() is None:
            time.sleep(POLL_S)
            if self._profile.take():
                self._ask_for_profiles()
            if self._is_hopeless() or self._stops_idle():
                agent.kill()  # its ranks die with it
        return self._outcome(agent.returncode)

    def _is_hopeless(self) -> bool:
        """The agent would restart a rank that told that it cannot help."""
        failure = Failure.load(self._scratch.failure)
        return failure is not None and failure.ends_worker

    def _stops_idle(self) -> bool:
        """Pass a stop on; whether there is no rank to wait for, nor one that is coming up."""
        if self._stop.since is None or not self._scratch.has_begun:
            return self._stop.is_set
        now = time.monotonic()
        if sum(self._tell(pid) for pid in self._scratch.pids()):
            self._last_alive = now
        patience = SAVED_STOP_S if self._scratch.stopped.exists() else IDLE_STOP_S
        return now - max(self._stop.since, self._last_alive) > patience

    def _ask_for_profiles(self) -> None:
        for pid in self._scratch.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, PROFILE_SIGNAL)

    def _tell(self, pid: int) -> bool:
        """Send a rank its one SIGTERM; whether it lives."""
        try:
            os.kill(pid, 0 if pid in self._told else signal.SIGTERM)
        except ProcessLookupError:
            return False
        self._told.add(pid)
        return True

    def _outcome(self, agent_code: int) -> Failure | None:
        failure = Failure.load(self._scratch.failure)
        if failure is not None and failure.ends_worker:
            return failure
        if self._scratch.stopped.exists():
            return STOPPED
        if agent_code == 0:
            return None
        if self._stop.is_set and agent_code == -signal.SIGKILL:
            return STOPPED_IDLE
        return failure or Failure.of_exit(agent_code)


def main() -> None:
    stop, profile = StopFlag.on_signal(), ProfileFlag.on_signal()
    die_with_parent()
    forbid_core_dumps()
    scratch = Scratch(Paths.from_env().scratch)
    failure = Launcher(scratch, stop, profile=profile).run()
    progress = scratch.last_progress()
    if failure is not None:
        exit_with(failure, progress)
    if progress and (log := os.environ.get(ENV_TERMINATION_LOG)):
        Path(log).write_text(json.dumps(progress))


if __name__ == "__main__":
    run(main)
