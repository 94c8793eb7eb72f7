"""Where local runs keep their state: one directory per job that mirrors the mount paths of a pod.

$DSTJ_HOME or ./.dstj
  secrets/<secret>/<key>   key-encryption keys, 0600
  volumes/<claim>/         data and base models, where they do not lie beside the job file
  <job>/status.yaml        the whole DeepSeekTrainingJob; what the next run goes on from
  <job>/lock               held by the `dstj run` that runs the job
  <job>/logs/<pod>/        one file per container
  <job>/work/ etc/dstj/ volumes/ run/dstj/keys/   what a pod of the job sees
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepseek_trainer.contract.errors import ConfigError, TryAgainError
from deepseek_trainer.contract.names import Paths

RESERVED = ("secrets", "volumes")


@dataclass(frozen=True, slots=True)
class JobHome:
    """The state of one job."""

    directory: Path

    @property
    def paths(self) -> Paths:
        return Paths(self.directory, self.directory / "tmp")

    @property
    def status_file(self) -> Path:
        return self.directory / "status.yaml"

    @property
    def logs(self) -> Path:
        """What the containers wrote; the trainer's own event files are in paths.logs."""
        return self.directory / "logs"

    def scratch(self, pod: str) -> Path:
        return self.directory / "tmp" / pod

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other `dstj run` of this job out; the kernel lets go when this process ends, however it ends."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise TryAgainError(
                    f"{self.directory.name}: is being run by process {lock.read().strip() or 'unknown'}",
                    hint=f"dstj status {self.directory.name}",
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    @property
    def is_locked(self) -> bool:
        """Whether a `dstj run` of this job is alive."""
        try:
            with (self.directory / "lock").open("a+") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@dataclass(frozen=True, slots=True)
class Home:
    """All local state."""

    directory: Path

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Home":
        return cls(Path(environ.get("DSTJ_HOME") or ".dstj").absolute())

    def make(self) -> None:
        """Private to this user, and never committed with the project that it lies in."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        ignore = self.directory / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")

    def job(self, name: str) -> JobHome:
        if name in RESERVED:
            raise ConfigError(f"metadata.name: {name!r} is reserved for local runs", hint=f"call the job {name}-1")
        return JobHome(self.directory / name)

    def has(self, name: str) -> bool:
        """Whether a job of this name was run here."""
        return name in self.jobs()

    def known_job(self, name: str) -> JobHome:
        """The job that was run here under this name.  Raises ConfigError naming those that were."""
        job = self.job(name)
        if not job.status_file.exists():
            names = ", ".join(self.jobs()) or "none"
            raise ConfigError(
                f"no local job {name!r} in {self.directory}", hint=f"jobs there: {names}; DSTJ_HOME moves the place"
            )
        return job

    def jobs(self) -> list[str]:
        return sorted(file.parent.name for file in self.directory.glob("*/status.yaml"))

    def secret(self, name: str) -> Path:
        return self.directory / "secrets" / name

    def volume(self, claim: str) -> Path:
        return self.directory / "volumes" / claim
