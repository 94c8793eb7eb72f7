"""The real cluster behind a pass: reads and writes of one training job's objects."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import aiohttp

from deepseek_operator.controller import metrics
from deepseek_operator.controller.client import FIELD_MANAGER, Api, ApiError, path
from deepseek_operator.controller.shared_reads import Shared
from deepseek_operator.jobs import labels
from deepseek_operator.jobs.blueprint import child_name
from deepseek_operator.jobs.failure import job_condition
from deepseek_operator.jobs.reconcile import RefusedError
from deepseek_operator.jobs.spec import API_VERSION, KIND, PROFILE_KIND
from deepseek_operator.objects.observed import JobKey, Manifest, Notice, Observed, Owner, Ref, Sighting, WarningEvent
from deepseek_operator.objects.pods import has_machine, is_finished
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.names import METRICS_PORT
from deepseek_trainer.contract.progress import Progress
from deepseek_trainer.contract.times import rfc3339

log = logging.getLogger(__name__)

MAX_PROGRESS_BYTES: Final = 64 * 1024
PROGRESS_TIMEOUT: Final = aiohttp.ClientTimeout(total=2)
MAX_DELETED: Final = 10_000  # jobs that are remembered after they were deleted, 200 bytes each
MAX_NOTICE: Final = 1024  # [characters]; the API server refuses longer messages of events

# Answers to an apply that no retry changes until somebody acts: bad request, forbidden (quota,
# admission, missing rights), unprocessable (invalid or immutable field).
_REFUSALS: Final = frozenset({400, 403, 422})


class KubernetesCluster:
    """Cluster of `reconcile`, over the API server; `session` reads the progress of pods."""

    def __init__(
        self,
        api: Api,
        session: aiohttp.ClientSession,
        settings: Settings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        metrics_port: int = METRICS_PORT,
    ) -> None:
        self._api, self._session, self._settings, self._now = api, session, settings, now
        self._metrics_port = metrics_port
        self._profiles = Shared(lambda name: api.get(path(API_VERSION, PROFILE_KIND, name=name)))
        self._quotas = Shared(self._quotas_in)
        self._phases: dict[JobKey, str] = {}
        self._created: dict[JobKey, Manifest] = {}  # told of by a watch, not looked at yet
        self._untouched: dict[JobKey, str] = {}  # uid of a job that was created just now, during its first pass
        self._written: dict[JobKey, str] = {}  # resourceVersion of the status that was written last
        self._departed: dict[JobKey, Manifest] = {}  # the last pod of node 0 that was deleted
        self._deleted: dict[JobKey, None] = {}  # of the last jobs that were deleted; something of them may be left

    def saw(self, sighting: Sighting) -> None:
        """Keep what a look would cost a request for, or would not find.

        Nothing was made yet for a job that was created just now.  A pod that was told to stop is deleted a moment
        after its end, mostly before a pass can read its last words; an operator that dies in between forgets them, and
        the next attempt's progress makes up for that.
        """
        if sighting.is_job:
            self._created.pop(sighting.key, None)  # changed since
        if sighting.created:
            self._created[sighting.key] = sighting.created
        if sighting.departed and labels.index_of(sighting.departed) == 0:
            self._departed[sighting.key] = last_words_of(sighting.departed)

    async def training_job(self, key: JobKey) -> Manifest | None:
        self._untouched.pop(key, None)
        if manifest := self._created.pop(key, None):
            if key not in self._phases and key not in self._deleted:  # else a namesake's may be there
                self._untouched[key] = manifest["metadata"]["uid"]
        else:
            manifest = await self._api.get(path(API_VERSION, KIND, key.namespace, key.name))
        self.count(key, manifest)
        return manifest

    async def profile(self, name: str) -> Manifest | None:
        return await self._profiles.ask(name)

    async def observe(self, owner: Owner, attempt: int) -> Observed:
        if self._untouched.get(owner.key) == owner.uid:
            return Observed(isolated=None, quotas=await self._quotas.ask(owner.namespace))
        selector = f"{labels.JOB_NAME}={owner.name}"
        async with asyncio.TaskGroup() as group:
            all_jobs = group.create_task(self._api.items("batch/v1", "Job", owner.namespace, labelSelector=selector))
            all_pods = group.create_task(self._api.items("v1", "Pod", owner.namespace, labelSelector=selector))
        jobs, pods = (_of(owner, task.result()) for task in (all_jobs, all_pods))
        newest = max(jobs, key=labels.attempt_of, default=None)
        current = [pod for pod in pods if newest and labels.attempt_of(pod) == labels.attempt_of(newest)]
        return Observed(
            worker_jobs=jobs,
            pods=pods,
            departed=self._departed_of(owner),
            progress=await self._progress(current),
            warnings=await self._warnings(newest, current) if newest else (),
            isolated=await self._is_isolated(owner) if newest else None,
            quotas=() if _is_made(attempt, jobs) else await self._quotas.ask(owner.namespace),
            leftovers=_leftovers(owner, (*all_jobs.result(), *all_pods.result())),
        )

    async def apply(self, manifest: Manifest) -> None:
        try:
            if not self._is_new(manifest) or not await self._api.create(manifest):
                await self._api.apply(manifest)
        except ApiError as error:
            if error.status in _REFUSALS:
                raise RefusedError(f"{manifest['kind']} {manifest['metadata']['name']}: {error.message}") from error
            raise

    def _is_new(self, manifest: Manifest) -> bool:
        """Whether the pass goes over a job for which nothing was made yet."""
        meta = manifest["metadata"]
        owner = JobKey(meta["namespace"], meta.get("labels", {}).get(labels.JOB_NAME, ""))
        return owner in self._untouched and self._untouched[owner] == meta["labels"].get(labels.JOB_UID)

    async def delete(self, ref: Ref) -> None:
        where = path(ref.api_version, ref.kind, ref.namespace, ref.name)
        options = {"preconditions": {"uid": ref.uid}, "propagationPolicy": "Background"}
        try:
            await self._api.request("DELETE", where, body=options)
        except ApiError as error:
            if error.status not in {404, 409}:  # gone, or a namesake by now
                raise

    async def set_status(self, owner: Owner, status: Manifest) -> None:
        # The uid makes the API server refuse to give a namesake made later the status of its predecessor.
        meta = {"namespace": owner.namespace, "name": owner.name, "uid": owner.uid}
        manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "status": status}
        try:
            written = json.loads(await self._api.apply(manifest, "status"))["metadata"]
        except ApiError as error:
            if error.status not in {404, 409}:
                raise
            return
        metrics.STATUS_WRITES.inc()
        self.count(owner.key, {"status": status})
        # A spec that changed in between has not been seen by this pass: its event must wake the next one.
        if written["generation"] == status["observedGeneration"]:
            self._written[owner.key] = written["resourceVersion"]

    def is_echo(self, sighting: Sighting) -> bool:
        """Whether the job is as it is because its status was written here, after a look at its spec."""
        return self._written.get(sighting.key) == sighting.version

    async def emit(self, owner: Owner, notice: Notice) -> None:
        metrics.TRANSITIONS.labels(notice.reason).inc()
        time = rfc3339(self._now())
        regarding = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": owner.namespace,
            "name": owner.name,
            "uid": owner.uid,
        }
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": owner.namespace, "name": f"{owner.name}.{uuid4().hex[:16]}"},
            "involvedObject": regarding,
            "type": notice.type,
            "reason": notice.reason,
            "message": notice.message[:MAX_NOTICE],
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        try:
            await self._api.request("POST", path("v1", "Event", owner.namespace), body=event)
        except ApiError as error:
            log.warning("event about %s lost: %s", owner.key, error)

    def _departed_of(self, owner: Owner) -> tuple[Manifest, ...]:
        pod = self._departed.get(owner.key)
        return (pod,) if pod and pod["metadata"]["labels"].get(labels.JOB_UID) == owner.uid else ()

    def count(self, key: JobKey, manifest: Manifest | None) -> None:
        """Keep the gauge of jobs by phase; None: the job is gone."""
        if before := self._phases.pop(key, None):
            metrics.JOBS.labels(before).dec()
        if manifest is None:
            self._written.pop(key, None)
            self._departed.pop(key, None)
            if before:
                self._remember(key)
        else:
            phase = self._phases[key] = manifest.get("status", {}).get("phase", "Pending")
            metrics.JOBS.labels(phase).inc()

    def _remember(self, key: JobKey) -> None:
        self._deleted[key] = None
        if len(self._deleted) > MAX_DELETED:
            del self._deleted[next(iter(self._deleted))]

    async def _is_isolated(self, owner: Owner) -> bool:
        policy = await self._api.get(path("networking.k8s.io/v1", "NetworkPolicy", owner.namespace, child_name(owner)))
        selected = policy and policy["spec"].get("podSelector", {}).get("matchLabels")
        return selected == {labels.JOB_UID: owner.uid}

    async def _quotas_in(self, namespace: str) -> tuple[Manifest, ...]:
        try:
            return await self._api.items("v1", "ResourceQuota", namespace)
        except ApiError as error:
            if error.status != 403:
                raise
            log.warning("no look at the quotas of %s: %s", namespace, error)  # an older role of the operator
            return ()

    async def _warnings(self, newest: Manifest, pods: Sequence[Manifest]) -> tuple[WarningEvent, ...]:
        """Warnings about a worker job that should have all pods by now, and about the first that its machine holds up.

        What keeps a pod from getting a machine stands in its status.  Events are read from disk, all of the namespace.
        """
        created = datetime.fromisoformat(newest["metadata"]["creationTimestamp"])
        over = any(job_condition(newest, type_) for type_ in ("Complete", "Failed"))
        if over or (self._now() - created).total_seconds() < self._settings.warnings_after_s:
            return ()
        waiting = [pod for pod in pods if has_machine(pod) and pod.get("status", {}).get("phase") == "Pending"]
        about = [*waiting[:1], *([newest] if len(pods) < newest["spec"]["parallelism"] else [])]
        found = [await self._warnings_about(manifest) for manifest in about]
        return tuple(warning for warnings in found for warning in warnings)

    async def _warnings_about(self, manifest: Manifest) -> list[WarningEvent]:
        meta, kind = manifest["metadata"], manifest["kind"]
        selector = f"involvedObject.uid={meta['uid']},type=Warning"
        events = await self._api.items("v1", "Event", meta["namespace"], fieldSelector=selector)
        newest_first = sorted(events, key=lambda event: event.get("lastTimestamp") or "", reverse=True)
        return [WarningEvent(kind, meta["name"], e.get("reason", ""), e.get("message", "")) for e in newest_first]

    async def _progress(self, pods: Iterable[Manifest]) -> Progress | None:
        """What rank 0 answers; None while it does not."""
        addresses = (
            pod["status"]["podIP"]
            for pod in pods
            if labels.index_of(pod) == 0
            and pod.get("status", {}).get("phase") == "Running"
            and pod["status"].get("podIP")
        )
        address = next(addresses, None)
        return await read_progress(self._session, address, self._metrics_port) if address else None


def last_words_of(pod: Manifest) -> Manifest:
    """Of a pod's manifest what tells whose it was and how its containers ended."""
    meta = {field: pod["metadata"].get(field, {}) for field in ("labels", "annotations")}
    return {"metadata": meta, "status": {"containerStatuses": pod.get("status", {}).get("containerStatuses", [])}}


def _of(owner: Owner, found: Iterable[Manifest]) -> tuple[Manifest, ...]:
    return tuple(child for child in found if child["metadata"]["labels"].get(labels.JOB_UID) == owner.uid)


def _leftovers(owner: Owner, found: Iterable[Manifest]) -> tuple[str, ...]:
    """Kind and name of what was made for another job of this name; admission keeps others from setting its uid."""
    uids = ((child, child["metadata"]["labels"].get(labels.JOB_UID)) for child in found)
    left = (child for child, uid in uids if uid not in {None, owner.uid} and not is_finished(child))
    return tuple(f"{child['kind']} {child['metadata']['name']}" for child in left)


def _is_made(attempt: int, worker_jobs: Iterable[Manifest]) -> bool:
    """Whether there is a worker job of `attempt`, or of one that the status does not know yet."""
    present = (job for job in worker_jobs if "deletionTimestamp" not in job["metadata"])
    return any(labels.attempt_of(job) >= attempt for job in present)


async def read_progress(session: aiohttp.ClientSession, address: str, port: int) -> Progress | None:
    """/progress of a pod.  The pod is not trusted: short patience, bounded size, no redirects."""
    host = f"[{address}]" if ":" in address else address
    content = b""
    try:
        async with session.get(
            f"http://{host}:{port}/progress", timeout=PROGRESS_TIMEOUT, allow_redirects=False
        ) as answer:
            if answer.status != 200:
                return None
            async for chunk in answer.content.iter_chunked(MAX_PROGRESS_BYTES):
                content += chunk
                if len(content) > MAX_PROGRESS_BYTES:
                    return None
    except (aiohttp.ClientError, TimeoutError):
        return None
    return Progress.read(content)
