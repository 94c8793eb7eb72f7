"""Smallest valid things of the operator's world; a test names only what it is about."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from deepseek_operator.api.names import API_VERSION, KIND, PROFILE_KIND
from deepseek_operator.jobs import labels
from deepseek_operator.jobs.blueprint import worker_job_name
from deepseek_operator.jobs.look import look
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.spec import JobSpec
from deepseek_operator.jobs.status import JobStatus
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.objects.observed import Manifest, Notice, Owner, OwnerKey, Ref, WarningEvent
from deepseek_operator.settings import Settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OWNER = Owner("ml", "demo", "5d2f2c1e-0000-4000-8000-000000000001")
SETTINGS = Settings()
IMAGE = "registry.local/trainer@sha256:" + "a" * 64
SPEC: dict[str, Any] = {
    "trainer": {"image": IMAGE, "numNodes": 2},
    "model": {
        "architecture": {"hiddenSize": 64, "numLayers": 2, "numHeads": 4, "intermediateSize": 128, "vocabSize": 512}
    },
    "data": {"train": {"claimName": "corpus"}},
    "optimization": {"globalBatchSize": 8, "maxSteps": 100},
}
PROFILE: dict[str, Any] = {"image": IMAGE}


def as_sent(manifest: Any) -> Any:
    """A copy by way of JSON, as from an API server; ten times as fast as copy.deepcopy."""
    return json.loads(json.dumps(manifest))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` over it; None removes a field."""
    result = as_sent(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def a_spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(merged(SPEC, changes))


def a_profile(**changes: Any) -> ProfileSpec:
    return ProfileSpec.model_validate(merged(PROFILE, changes))


def a_training_job(
    spec: dict[str, Any] | None = None, status: JobStatus | None = None, *, generation: int = 1, **meta: Any
) -> Manifest:
    """A DeepSeekTrainingJob as the API server gives it; `spec` are changes to the smallest one."""
    manifest = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "namespace": OWNER.namespace,
            "name": OWNER.name,
            "uid": OWNER.uid,
            "generation": generation,
            **meta,
        },
        "spec": merged(SPEC, spec or {}),
    }
    return manifest | ({"status": status.manifest()} if status else {})


def a_job(spec: dict[str, Any] | None = None, status: JobStatus | None = None, **meta: Any) -> TrainingJob:
    return TrainingJob.read(a_training_job(spec, status, **meta))


def a_worker_job(
    attempt: int = 1, *, conditions: tuple[str, ...] = (), suspend: bool = False, queue: str = "", **status: Any
) -> Manifest:
    name = worker_job_name(OWNER, attempt)
    queued = {labels.QUEUE: queue} if queue else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": OWNER.namespace,
            "name": name,
            "uid": f"uid-of-{name}",
            "creationTimestamp": "2026-01-02T03:00:00Z",
            "labels": {labels.JOB_NAME: OWNER.name, labels.JOB_UID: OWNER.uid, labels.ATTEMPT: str(attempt)} | queued,
            "ownerReferences": [{"kind": KIND, "name": OWNER.name, "uid": OWNER.uid, "controller": True}],
        },
        "spec": {"parallelism": 2} | ({"suspend": True} if suspend else {}),
        "status": {"conditions": [{"type": type_, "status": "True"} for type_ in conditions]} | status,
    }


def a_pod(
    index: int = 0,
    phase: str = "Running",
    *,
    attempt: int = 1,
    ready: bool | None = None,
    machine: str | None = "machine",
    **status: Any,
) -> Manifest:
    """A pod of the worker job of `attempt`; a running one is ready unless said otherwise."""
    job = worker_job_name(OWNER, attempt)
    is_ready = phase == "Running" if ready is None else ready
    conditions = [*status.pop("conditions", ()), {"type": "Ready", "status": str(is_ready)}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": OWNER.namespace,
            "name": f"{job}-{index}-xxxxx",
            "uid": f"uid-of-{job}-{index}",
            "creationTimestamp": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "labels": {labels.JOB_NAME: OWNER.name, labels.JOB_UID: OWNER.uid, labels.ATTEMPT: str(attempt)},
            "annotations": {labels.COMPLETION_INDEX: str(index)},
            "ownerReferences": [{"kind": "Job", "name": job, "uid": f"uid-of-{job}", "controller": True}],
        },
        "spec": {"nodeName": f"{machine}-{index}"} if machine else {},
        "status": {"phase": phase, "conditions": conditions, **status},
    }


def a_lost_pod(index: int = 0, *, attempt: int = 1, evicted: bool = False) -> Manifest:
    """A pod whose machine went silent, as the node controller marks it, and later the taint manager."""
    conditions = [{"type": "ContainersReady", "status": "True"}]
    if evicted:
        conditions.append({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"})
    pod = a_pod(index, attempt=attempt, ready=False, conditions=conditions)
    pod["status"]["conditions"][-1]["lastTransitionTime"] = NOW.isoformat()
    return pod


def terminated(exit_code: int, message: str = "", *, at: int = 0, reason: str = "Error") -> dict[str, Any]:
    """containerStatuses of a pod whose trainer ended `at` seconds after NOW."""
    finished = (NOW + timedelta(seconds=at)).isoformat()
    state = {"exitCode": exit_code, "message": message, "reason": reason, "finishedAt": finished}
    return {"containerStatuses": [{"name": "trainer", "state": {"terminated": state}}]}


def beside(pod: Manifest, *states: Manifest, name: str = "proxy") -> Manifest:
    """The pod with a container that somebody has put into it, in the first of `states`; by default it runs."""
    status = {"name": name, "state": states[0] if states else {"running": {"startedAt": NOW.isoformat()}}}
    own = pod["status"].get("containerStatuses", [])
    return pod | {"status": pod["status"] | {"containerStatuses": [status, *own]}}


def training(pod: Manifest, *, since: int = 0) -> Manifest:
    """The pod with a trainer that has run since `since` seconds after NOW."""
    running = {"running": {"startedAt": (NOW + timedelta(seconds=since)).isoformat()}}
    trainer = {"name": "trainer", "ready": True, "state": running}
    return pod | {"status": pod["status"] | {"containerStatuses": [trainer]}}


def a_quota(hard: dict[str, Any], used: dict[str, Any], **spec: Any) -> Manifest:
    return {"metadata": {"name": "team"}, "spec": {"hard": hard, **spec}, "status": {"hard": hard, "used": used}}


def a_warning(reason: str, message: str, *, kind: str = "Job", name: str = "demo-a1") -> WarningEvent:
    return WarningEvent(kind, name, reason, message)


class CrashError(Exception):
    """The operator died here."""


class FakeCluster:
    """Cluster of `reconcile` in memory.  After `survives` writes, each further one is done and raises CrashError."""

    def __init__(self, training_job: Manifest | None, *, survives: int | None = None) -> None:
        self.job = training_job
        self.profiles: dict[str, Manifest] = {}
        self.children: dict[tuple[str, str], Manifest] = {}  # by kind and name; worker jobs among them
        self.pods: list[Manifest] = []
        self.progress: Manifest | None = None
        self.warnings: tuple[WarningEvent, ...] = ()
        self.quotas: list[Manifest] = []
        self.leftovers: tuple[str, ...] = ()
        self.notices: list[Notice] = []
        self.log: list[str] = []  # every write, in order
        self.survives = survives

    @property
    def status(self) -> JobStatus:
        assert self.job is not None
        return JobStatus.model_validate(self.job.get("status", {}))

    @property
    def worker_jobs(self) -> list[str]:
        return sorted(name for kind, name in self.children if kind == "Job")

    async def fetch(self, key: OwnerKey) -> Manifest | None:
        return as_sent(self.job)

    async def look(self, owner: TrainingJob) -> Observed | None:
        return await look(owner, self)

    async def profile(self, name: str) -> Manifest | None:
        return self.profiles.get(name)

    async def observe(self, owner: Owner, attempt: int) -> Observed:
        jobs = tuple(manifest for (kind, _), manifest in sorted(self.children.items()) if kind == "Job")
        isolated = any(kind == "NetworkPolicy" for kind, _ in self.children)
        jobs, pods, quotas = (tuple(as_sent(things)) for things in (jobs, self.pods, self.quotas))
        return Observed(
            worker_jobs=jobs,
            pods=pods,
            progress=self.progress,
            warnings=self.warnings,
            isolated=isolated,
            quotas=quotas,
            leftovers=self.leftovers,
        )

    async def apply(self, manifest: Manifest) -> None:
        key = manifest["kind"], manifest["metadata"]["name"]
        known = self.children.get(
            key, {"metadata": {"uid": f"uid-of-{key[1]}", "creationTimestamp": "2026-01-02T03:00:00Z"}}
        )
        self.children[key] = merged(known, manifest)
        self._written(f"apply {key[0]} {key[1]}")

    async def delete(self, ref: Ref) -> None:
        if ref.kind == KIND:
            self.job = None
        elif self.children.get((ref.kind, ref.name), {}).get("metadata", {}).get("uid") == ref.uid:
            del self.children[ref.kind, ref.name]
        self._written(f"delete {ref.kind} {ref.name}")

    async def set_status(self, owner: Owner, status: Manifest) -> None:
        if self.job is not None:
            self.job["status"] = as_sent(status)
        self._written("status")

    async def emit(self, owner: Owner, notice: Notice) -> None:
        self.notices.append(notice)
        self._written(f"event {notice.reason}")

    def _written(self, what: str) -> None:
        self.log.append(what)
        if self.survives is not None:
            self.survives -= 1
            if self.survives < 0:
                raise CrashError(what)

    # What kube-controller-manager, the kubelet and people do.

    def start_pods(self, phase: str = "Running") -> None:
        """Every worker job that is not over gets its pods."""
        for (kind, _), job in self.children.items():
            attempt, is_over = labels.attempt_of(job), bool(job.get("status", {}).get("conditions"))
            if kind == "Job" and not is_over and not any(labels.attempt_of(pod) == attempt for pod in self.pods):
                self.pods += [a_pod(index, phase, attempt=attempt) for index in range(job["spec"]["parallelism"])]

    def finish(self, attempt: int, condition: str, exit_code: int = 0, **details: Any) -> None:
        """The worker job of `attempt` and its pods end."""
        self.pods = [pod for pod in self.pods if labels.attempt_of(pod) != attempt]
        phase = "Succeeded" if condition == "Complete" else "Failed"
        self.pods += [a_pod(i, phase, attempt=attempt, **terminated(exit_code, **details)) for i in range(2)]
        job = self.children["Job", worker_job_name(OWNER, attempt)]
        job["status"] = {"conditions": [{"type": condition, "status": "True"}]}

    def collect(self) -> None:
        """Pods whose worker job is gone leave."""
        attempts = {labels.attempt_of(job) for (kind, _), job in self.children.items() if kind == "Job"}
        self.pods = [pod for pod in self.pods if labels.attempt_of(pod) in attempts]

    def change_spec(self, **changes: Any) -> None:
        assert self.job is not None
        self.job["spec"] = merged(self.job["spec"], changes)
        self.job["metadata"]["generation"] += 1


def a_profile_manifest(name: str, **changes: Any) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": PROFILE_KIND,
        "metadata": {"name": name},
        "spec": merged(PROFILE, changes),
    }
