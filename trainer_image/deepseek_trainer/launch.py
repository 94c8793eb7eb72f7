"""PID 1 of a worker: it keeps the torchrun agent, passes signals on to the ranks, and reports how the worker ended.

The agent itself never gets a SIGTERM: it would kill its ranks after 30 s, and a last checkpoint may take longer.  The
ranks get the signal instead, agree, save, and end with code 0.
"""

import http.client
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.names import LEAVE_S, ExitCode, Paths, metrics_port, node_address
from deepseek_trainer.worker.failure import Failure, exit_with, leave_message, run
from deepseek_trainer.worker.process import (
    PROFILE_SIGNAL,
    ProfileFlag,
    StopFlag,
    die_with_parent,
    forbid_core_dumps,
    shut_in,
)
from deepseek_trainer.worker.scratch import Scratch

AGENT = (sys.executable, "-m", "deepseek_trainer.agent")
POLL_S = 0.1
IDLE_STOP_S = 10.0  # without a living rank; a rank that was just started takes seconds to handle a signal
LAST_WORDS_S = 5.0  # left for the launcher before the kubelet kills all
ANSWER_S = 2.0  # of them, for rank 0 to answer
SAVED_STOP_S = 3.0  # without a living rank, once the ranks have saved: only the agents' farewell is left
# A fresh store for every round of ranks.  In the agent's own store, a rank that restarts may read the address of a dead
# peer, because the nodes count restarts differently.
AGENT_ENV = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
STOPPED = Failure(ExitCode.STOPPED, "Stopped", "asked to stop: every step that was done is saved")
STOPPED_IDLE = Failure(ExitCode.STOPPED, "Stopped", "asked to stop while no rank ran: the last checkpoint is the state")


class Launcher:
    """One worker from start to end."""

    def __init__(
        self,
        scratch: Scratch,
        stop: StopFlag,
        command: Sequence[str] = AGENT,
        profile: ProfileFlag | None = None,
        stop_s: float = math.inf,
    ) -> None:
        """`stop_s`: how long the ranks may take to stop."""
        self._stop_s, self._is_late = stop_s, False
        self._scratch, self._stop, self._command = scratch, stop, command
        self._profile = profile or ProfileFlag()
        self._signalled: set[int] = set()
        self._last_alive = 0.0  # time.monotonic() when a rank was last seen after a stop [s]
        scratch.clear()

    def run(self) -> Failure | None:
        """Run the agent to its end; returns None if the training is done, else the failure."""
        agent = subprocess.Popen(self._command, env=os.environ | AGENT_ENV, start_new_session=True)
        while agent.poll() is None:
            time.sleep(POLL_S)
            if self._profile.take():
                self._ask_for_profiles()
            if self._is_hopeless() or self._stops_idle() or self._stops_late():
                agent.kill()  # its ranks die with it
        return self._outcome(agent.returncode)

    def _is_hopeless(self) -> bool:
        """Whether a rank has failed in a way that a restart, which the agent would try, cannot help."""
        failure = Failure.load(self._scratch.failure)
        return failure is not None and failure.ends_worker

    def _stops_idle(self) -> bool:
        """Pass a stop on to the ranks; returns whether no rank is left to wait for, or about to start."""
        if self._stop.since is None or not self._scratch.has_begun:
            return self._stop.is_set
        now = time.monotonic()
        if sum(self._signal(pid) for pid in self._scratch.pids()):
            self._last_alive = now
        patience = SAVED_STOP_S if self._scratch.stopped.exists() else IDLE_STOP_S
        return now - max(self._stop.since, self._last_alive) > patience

    def _stops_late(self) -> bool:
        """Whether the ranks have not stopped in time, for example on a volume that hangs.

        The kubelet is then about to kill all, so rank 0 is asked for its progress before.
        """
        if self._stop.since is not None and not self._is_late:
            self._is_late = time.monotonic() - self._stop.since > self._stop_s
            if self._is_late and (progress := _fetch_progress()):
                self._scratch.leave_progress(progress)
        return self._is_late

    def _ask_for_profiles(self) -> None:
        for pid in self._scratch.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, PROFILE_SIGNAL)

    def _signal(self, pid: int) -> bool:
        """Send a rank its one SIGTERM; returns whether the rank is alive."""
        try:
            os.kill(pid, 0 if pid in self._signalled else signal.SIGTERM)
        except ProcessLookupError:
            return False
        self._signalled.add(pid)
        return True

    def _outcome(self, agent_code: int) -> Failure | None:
        failure = Failure.load(self._scratch.failure)
        if failure is not None and failure.ends_worker:
            return failure
        if self._scratch.stopped.exists():
            return STOPPED
        if agent_code == 0:
            return None
        if self._is_late:
            return too_late(self._stop_s, self._scratch.last_progress())
        if self._stop.is_set and agent_code == -signal.SIGKILL:
            return STOPPED_IDLE
        return failure or Failure.of_exit(agent_code)


def too_late(stop_s: float, progress: Mapping[str, Any]) -> Failure:
    """The failure of ranks that did not stop in time, with the last checkpoint that they reported."""
    saved = progress.get("lastCheckpoint")
    kept = f"that of step {saved['step']} is the state" if saved else "the one that they began with is the state"
    hint = "see the volume, which may be slow or hang; raise checkpoint.gracePeriodSeconds"
    problem = f"asked to stop, and the last checkpoint was not written after {stop_s:.0f} s: {kept}"
    return Failure(ExitCode.TRY_AGAIN, "StopTimeout", f"{problem} (hint: {hint})")


def _fetch_progress() -> bytes:
    """The answer of rank 0 on /progress; empty on other nodes, or if it does not answer."""
    connection = http.client.HTTPConnection(node_address(), metrics_port(), timeout=ANSWER_S)
    try:
        connection.request("GET", "/progress")
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()


def main() -> None:
    stop, profile = StopFlag.on_signal(), ProfileFlag.on_signal()
    die_with_parent()
    forbid_core_dumps()
    paths = Paths.from_env()
    shut_in(paths.scratch)
    from deepseek_trainer.worker.training_config import load_config  # noqa: PLC0415 a second of import, after the handlers

    grace_s = load_config(paths.config).checkpoint.grace_period_seconds
    scratch = Scratch(paths.scratch)
    failure = Launcher(scratch, stop, profile=profile, stop_s=grace_s + LEAVE_S - LAST_WORDS_S).run()
    progress = scratch.last_progress()
    if failure is not None:
        exit_with(failure, progress)
    if progress:
        leave_message(json_text(progress).encode())


if __name__ == "__main__":
    run(main)
