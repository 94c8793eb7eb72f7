"""PID 1 of a worker: keeps the torchrun agent, passes signals on to the ranks, translates how it all ended.

The agent itself never sees SIGTERM: it would kill its ranks after 30 s, while a last checkpoint
may take longer.  The ranks get it instead, agree, save, and end with code 0.
"""

import http.client
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from deepseek_trainer.contract.names import LEAVE_S, ExitCode, Paths, metrics_port, node_address, termination_log
from deepseek_trainer.worker.failure import Failure, exit_with, run
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
IDLE_STOP_S = 10.0  # without a living rank; one that was just started takes seconds to hear a stop
LAST_WORDS_S = 5.0  # before the kubelet kills all
ANSWER_S = 2.0  # of them, for rank 0 to answer
SAVED_STOP_S = 3.0  # without a living rank, once they have saved: only the agents' farewell is left
# A fresh store for every round of ranks: in the agent's own, a rank that restarts may read the address
# of a peer that is dead, because the nodes do not count restarts alike.
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
        """None if the training is done, else how it ended."""
        agent = subprocess.Popen(self._command, env=os.environ | AGENT_ENV, start_new_session=True)
        while agent.poll() is None:
            time.sleep(POLL_S)
            if self._profile.take():
                self._ask_for_profiles()
            if self._is_hopeless() or self._stops_idle() or self._stops_late():
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
        if sum(self._signal(pid) for pid in self._scratch.pids()):
            self._last_alive = now
        patience = SAVED_STOP_S if self._scratch.stopped.exists() else IDLE_STOP_S
        return now - max(self._stop.since, self._last_alive) > patience

    def _stops_late(self) -> bool:
        """Whether the kubelet is about to kill all, as on a volume that hangs; rank 0 is asked what it knows before."""
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
        """Send a rank its one SIGTERM; whether it lives."""
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
    """Of ranks that were asked to stop, and did not; with the checkpoint that they told of last."""
    saved = progress.get("lastCheckpoint")
    kept = f"that of step {saved['step']} is the state" if saved else "the one that they began with is the state"
    hint = "see the volume, which may be slow or hang; raise checkpoint.gracePeriodSeconds"
    problem = f"asked to stop, and the last checkpoint was not written after {stop_s:.0f} s: {kept}"
    return Failure(ExitCode.TRY_AGAIN, "StopTimeout", f"{problem} (hint: {hint})")


def _fetch_progress() -> bytes:
    """What rank 0 answers on /progress; nothing on other nodes, or where it does not answer."""
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
    if progress and (log := termination_log()):
        log.write_text(json.dumps(progress))


if __name__ == "__main__":
    run(main)
