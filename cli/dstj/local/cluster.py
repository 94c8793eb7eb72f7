"""A cluster of one machine, over which the operator's own pass decides what happens, as over a real one."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from deepseek_operator.api.names import API_VERSION, PROFILE_KIND
from deepseek_operator.concurrency import wait_for, within
from deepseek_operator.jobs.look import look
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.objects.observed import Notice, Owner, OwnerKey, Ref
from deepseek_trainer.contract.names import ENV_ROOT
from deepseek_trainer.contract.progress import Progress
from deepseek_trainer.storage.durable import remove
from dstj.local import strays
from dstj.local.claims import Sources
from dstj.local.home import JobHome
from dstj.local.kubelet import Manifest
from dstj.local.store import store
from dstj.local.worker_job import LocalJob, Machine

PROGRESS_TIMEOUT_S = 2.0
PROGRESS_BYTES = 65536
KILL_PATIENCE_S = 5.0

# Stands in for a profile that is in no file.  This machine has one image: the trainer that is installed.
INSTALLED: Manifest = {
    "apiVersion": API_VERSION,
    "kind": PROFILE_KIND,
    "metadata": {"name": "installed"},
    "spec": {"image": f"localhost/deepseek-trainer@sha256:{64 * '0'}"},
}


class LocalCluster:
    """The deepseek_operator.controller.reconcile.Cluster of one training job, over local processes."""

    def __init__(
        self,
        manifest: Manifest,
        home: JobHome,
        sources: Sources,
        *,
        procs_per_node: int = 1,
        profiles: Mapping[str, Manifest] | None = None,
    ) -> None:
        self.manifest = manifest
        self._home, self._profiles = home, profiles or {}
        self._machine = Machine(home, sources, procs_per_node)
        self._jobs: list[LocalJob] = []
        self._leaving: list[LocalJob] = []
        self._lost: list[tuple[Manifest, list[Manifest]]] = []
        self._changed = asyncio.Event()

    @property
    def key(self) -> OwnerKey:
        meta = self.manifest["metadata"]
        return OwnerKey(meta["namespace"], meta["name"])

    def recover(self) -> None:
        """End the processes of a `dstj run` that was killed.  The next pass then finds its worker job gone."""
        strays.end_all(ENV_ROOT, str(self._home.directory))
        remove(self._home.directory / "tmp", ignore_errors=True)
        store(self._home, self.manifest)

    def suspend(self) -> None:
        """Do what `kubectl patch` with spec.suspend: true does."""
        self.manifest["spec"]["suspend"] = True
        self.manifest["metadata"]["generation"] += 1
        store(self._home, self.manifest)
        self._changed.set()

    @property
    def has_trained(self) -> bool:
        """Whether the pods that run have something to save."""
        return any(job.has_trained for job in self._jobs)

    def kill(self) -> None:
        """Kill all pods at once."""
        for job in (*self._jobs, *self._leaving):
            job.stop(grace_s=0)

    async def close(self) -> None:
        """End every process that is left."""
        self.kill()
        with suppress(TimeoutError):
            await within(KILL_PATIENCE_S, self._done())

    async def _done(self) -> None:
        while any(not job.is_done for job in (*self._jobs, *self._leaving)):
            await self.wait(KILL_PATIENCE_S)

    async def wait(self, seconds: float) -> None:
        """Wait until something changes, but not longer than `seconds`."""
        await wait_for(self._changed, seconds)
        self._changed.clear()

    async def fetch(self, key: OwnerKey) -> Manifest | None:
        return self.manifest if key == self.key else None

    async def look(self, owner: TrainingJob) -> Observed | None:
        return await look(owner, self)

    async def profile(self, name: str) -> Manifest | None:
        return self._profiles.get(name, INSTALLED)

    async def observe(self, owner: Owner, attempt: int) -> Observed:  # noqa: ARG002  there is one job, and no quota
        self._leaving = [job for job in self._leaving if not job.has_ended]
        jobs = tuple(job.manifest for job in self._jobs)
        pods = tuple(pod for job in (*self._jobs, *self._leaving) for pod in job.pods)
        running = [job for job in self._jobs if not job.has_ended]
        progress = await _progress(running[-1].ports.metrics[0]) if running else None
        if running:
            running[-1].heard(progress)
        return Observed(worker_jobs=jobs, pods=pods, progress=progress)

    async def apply(self, manifest: Manifest) -> None:
        """Make what the object means here.  Objects for other machines (Service, NetworkPolicy, ...) need nothing."""
        name = manifest["metadata"]["name"]
        match manifest["kind"]:
            case "PersistentVolumeClaim":
                self._machine.sources.claims[name].mkdir(parents=True, exist_ok=True)
            case "Job" if all(job.name != name for job in self._jobs):
                self._jobs.append(LocalJob(manifest, self._machine, self._changed.set))

    async def delete(self, ref: Ref) -> None:
        for job in [job for job in self._jobs if job.manifest["metadata"]["uid"] == ref.uid]:
            job.stop()
            self._jobs.remove(job)
            self._leaving.append(job)

    async def set_status(self, owner: Owner, status: Manifest) -> None:  # noqa: ARG002
        self.manifest["status"] = status
        store(self._home, self.manifest)
        self._changed.set()

    async def emit(self, owner: Owner, notice: Notice) -> None:
        """Nothing to do: only the screen watches, and it reads the status."""


async def _progress(port: int) -> Progress | None:
    """What node 0 answers on /progress, or None while it does not."""
    try:
        return await within(PROGRESS_TIMEOUT_S, _get("/progress", port))
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError):
        return None


async def _get(path: str, port: int) -> Progress | None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=PROGRESS_BYTES)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        body = await _all(reader)
        return Progress.read(body) if b" 200 " in head.split(b"\r\n")[0] else None
    finally:
        writer.close()


async def _all(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while chunk := await reader.read(PROGRESS_BYTES):
        body += chunk
        if len(body) > PROGRESS_BYTES:
            raise ValueError("more than a progress report")
    return body
