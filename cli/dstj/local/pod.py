"""Runs one pod as local processes: init containers one after the other, then the containers, as the kubelet does."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from deepseek_operator.concurrency import gathered
from deepseek_trainer.contract.errors import JobError
from deepseek_trainer.contract.names import ENV_SCRATCH, ENV_TERMINATION_LOG
from deepseek_trainer.contract.times import rfc3339, utc_now
from deepseek_trainer.storage.durable import remove
from deepseek_trainer.storage.opening import opened, opened_to_append
from deepseek_trainer.worker.process import die_with_parent
from dstj.local import strays
from dstj.local.kubelet import Manifest, environment, terminated

POLL_S = 0.05
MESSAGE_BYTES = 4096  # as much of a termination log as the kubelet keeps
FALLBACK_BYTES = 2048  # and of the log, with terminationMessagePolicy FallbackToLogsOnError
# Variables that a surrounding torchrun or job may have set, and that must not reach ours.
FOREIGN = ("DSTJ_", "PET_", "TORCHELASTIC_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_")
NOT_STARTED = 128  # exit code that the kubelet reports for a command that cannot be started


def inherited(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """This process's environment (PATH, library paths) without the variables that steer another job."""
    return {name: value for name, value in environ.items() if not name.startswith(FOREIGN)}


class LocalPod:
    """A pod object and the processes behind it.  `manifest` always has the current state."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        variables: Callable[[Manifest, bool], dict[str, str]],
        scratch: Path,
        logs: Path,
        changed: Callable[[], None],
    ) -> None:
        """`variables(pod, is_init)` override those of the template.  `changed` is called after every change."""
        self.manifest = manifest
        self._variables, self._scratch, self._logs, self._changed = variables, scratch, logs, changed
        self._processes: list[subprocess.Popen[bytes]] = []
        self._kill_at: float | None = None

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def phase(self) -> str:
        return str(self.manifest["status"]["phase"])

    @property
    def is_leaving(self) -> bool:
        return "deletionTimestamp" in self.manifest["metadata"]

    async def run(self) -> None:
        """Run the pod to its end.  After that, nothing that it started is alive."""
        spec = self.manifest["spec"]
        self._scratch.mkdir(parents=True, exist_ok=True)
        try:
            for container in spec.get("initContainers", ()):
                if self.is_leaving or await self._container(container, "initContainerStatuses"):
                    return self._end("Failed")
            if self.is_leaving:
                return self._end("Failed")
            self._set_phase("Running", ready=True)
            codes = await gathered(*(self._container(c, "containerStatuses") for c in spec["containers"]))
            self._end("Failed" if any(codes) else "Succeeded")
        finally:
            strays.end_all(ENV_SCRATCH, str(self._scratch))
            remove(self._scratch, ignore_errors=True)

    def stop(self, grace_s: float) -> None:
        """Send SIGTERM to each container's main process, as the kubelet does, and SIGKILL to all after `grace_s`."""
        if not self.is_leaving:
            self.manifest["metadata"]["deletionTimestamp"] = utc_now()
            for process in self._processes:
                process.terminate()
        kill_at = asyncio.get_running_loop().time() + grace_s
        self._kill_at = min(self._kill_at or kill_at, kill_at)
        self._changed()

    async def _container(self, container: Manifest, kind: str) -> int:
        """Run one container; returns its exit code."""
        started = datetime.now(UTC)
        own = self._variables(self.manifest, kind.startswith("init"))
        variables = inherited() | environment(container, self.manifest) | own
        log, message = self._logs / f"{container['name']}.log", self._logs / f"{container['name']}.termination"
        variables[ENV_TERMINATION_LOG] = str(message)
        message.parent.mkdir(parents=True, exist_ok=True)
        message.unlink(missing_ok=True)
        try:
            process = _started(container["command"], variables, self._scratch, log)
        except OSError as error:
            code, text = NOT_STARTED, f"cannot start {container['command']}: {error.strerror}"
        else:
            self._set_container(kind, container["name"], {"running": {"startedAt": rfc3339(started)}})
            code = await self._ended(process, message)
            text = _message(message, log, code)
        self._set_container(kind, container["name"], terminated(code, text, started, datetime.now(UTC)))
        return code

    async def _ended(self, process: subprocess.Popen[bytes], marker: Path) -> int:
        """Wait for the main process, and end with it what else the container started, as a PID namespace does."""
        self._processes.append(process)
        loop = asyncio.get_running_loop()
        while process.poll() is None:
            await asyncio.sleep(POLL_S)
            if self._kill_at is not None and loop.time() >= self._kill_at:
                strays.end_all(ENV_TERMINATION_LOG, str(marker))
        self._processes.remove(process)
        strays.end_all(ENV_TERMINATION_LOG, str(marker))
        return int(process.returncode)

    def _end(self, phase: str) -> None:
        self._set_phase(phase, ready=False)

    def _set_phase(self, phase: str, *, ready: bool) -> None:
        now = utc_now()
        self.manifest["status"]["phase"] = phase
        self.manifest["status"].setdefault("startTime", now)
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": now}
        self.manifest["status"]["conditions"] = [condition]
        self._changed()

    def _set_container(self, kind: str, name: str, state: Manifest) -> None:
        others = [status for status in self.manifest["status"].get(kind, ()) if status["name"] != name]
        status = {"name": name, "state": state, "restartCount": 0, "ready": "running" in state}
        self.manifest["status"][kind] = [*others, status]
        self._changed()


def _started(command: list[str], variables: Mapping[str, str], directory: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C reaches `dstj` only.  It dies if `dstj` dies."""
    interpreter = [sys.executable] if command[0] == "python" else command[:1]
    parent = os.getpid()

    def bind_to_parent() -> None:
        die_with_parent()
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    with opened_to_append(log) as output:
        return subprocess.Popen(
            [*interpreter, *command[1:]],
            env=dict(variables),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=bind_to_parent,  # noqa: PLW1509  this process has one thread
        )


def _message(termination_log: Path, log: Path, code: int) -> str:
    """The container's termination message.  After a failure without one, it is the end of its log."""
    try:
        text = _end_of(termination_log, MESSAGE_BYTES, from_start=True)
        if not text and code:
            text = _end_of(log, FALLBACK_BYTES)
    except JobError as error:  # the container has put something else in the place of its file
        return str(error)
    return text.decode(errors="replace").strip()


def _end_of(file: Path, size: int, *, from_start: bool = False) -> bytes:
    """At most `size` bytes of a file, its last ones unless `from_start`; none if it is not there."""
    try:
        with opened(file) as stream:
            if not from_start:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            return stream.read(size)
    except FileNotFoundError:
        return b""
