"""The state of local runs: a directory for each job, which mirrors the mount paths of a pod.

$DSTJ_HOME or ./.dstj
  secrets/<secret>/<key>   key-encryption keys and tokens, 0600
  configmaps/<name>/<key>  certificates of key servers
  volumes/<claim>/         data and base models, if they do not lie beside the job file
  <job>/status.yaml        the whole DeepSeekTrainingJob, from which the next run goes on
  <job>/lock               held by the `dstj run` that runs the job
  <job>/logs/<pod>/        one file per container
  <job>/work/ etc/dstj/ volumes/ run/dstj/keys/   the mounts of the job's pods
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepseek_trainer.contract.errors import ConfigError, TryAgainError
from deepseek_trainer.contract.foreign import named
from deepseek_trainer.contract.names import Paths

RESERVED = ("configmaps", "secrets", "volumes")


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
        """The output of the containers.  The trainer's own event files are in paths.logs."""
        return self.directory / "logs"

    def scratch(self, pod: str) -> Path:
        return self.directory / "tmp" / pod

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other `dstj run` of this job out.  The kernel releases the lock however this process ends."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise TryAgainError(
                    f"{self.directory.name}: process {lock.read().strip() or 'unknown'} runs this job already",
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
        """Make the directory: private to this user, and ignored by the Git repository that it lies in."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        ignore = self.directory / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")

    def job(self, name: str) -> JobHome:
        if name in RESERVED:
            raise ConfigError(f"metadata.name: {named(name)} is reserved for local runs", hint=f"call the job {name}-1")
        return JobHome(self.directory / name)

    def has(self, name: str) -> bool:
        """Whether a job of this name was run here."""
        return name in self.jobs()

    def known_job(self, name: str) -> JobHome:
        """The job that was run here under this name.  If there is none, raises ConfigError with the names there are."""
        job = self.job(name)
        if not job.status_file.exists():
            names = ", ".join(self.jobs()) or "none"
            raise ConfigError(
                f"no local job {named(name)} in {self.directory}",
                hint=f"jobs there: {names}; DSTJ_HOME moves the place",
            )
        return job

    def jobs(self) -> list[str]:
        return sorted(file.parent.name for file in self.directory.glob("*/status.yaml"))

    def secret(self, name: str) -> Path:
        return self.directory / "secrets" / name

    def config_map(self, name: str) -> Path:
        return self.directory / "configmaps" / name

    def volume(self, claim: str) -> Path:
        return self.directory / "volumes" / claim
