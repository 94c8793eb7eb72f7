"""Passes of the operator over a real API server without nodes, one by one and by a clock that the test moves.

The test is the scheduler and the kubelets: it gives pods their machines and their statuses.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from deepseek_operator.api.names import API_VERSION, KIND
from deepseek_operator.controller.client import Api, ApiError, path
from deepseek_operator.controller.cluster import KubernetesCluster
from deepseek_operator.controller.reconcile import reconcile
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.objects.observed import Manifest, OwnerKey
from deepseek_operator.settings import Settings
from support.builders.operator import SPEC, merged

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "benchmarks" / "operator"))
from plane import Plane, control_plane  # noqa: E402

__all__ = ["Jobs", "Plane", "control_plane", "jobs_on"]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
PATIENCE_S = 30.0
SETTINGS = Settings(warnings_after_s=0.0)
_numbers = itertools.count()


@dataclass
class Jobs:
    """The training jobs of a namespace, and the operator's passes over them."""

    api: Api
    session: aiohttp.ClientSession
    namespace: str
    ahead: timedelta = field(default_factory=timedelta)  # of the operator's clock

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def wait(self, seconds: float) -> None:
        """Let time pass for the operator."""
        self.ahead += timedelta(seconds=seconds)

    async def create(self, manifest: Manifest) -> Manifest:
        meta = {"namespace": self.namespace, **manifest["metadata"]}
        where = path(manifest["apiVersion"], manifest["kind"], self.namespace)
        return await self.api.request("POST", where, body=manifest | {"metadata": meta})

    async def submit(self, name: str = "demo", labels: dict[str, str] | None = None, **spec: Any) -> None:
        meta = {"name": name, "labels": labels or {}}
        manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": merged(SPEC, spec)}
        await self.create(manifest)

    async def change(self, change: Manifest, name: str = "demo") -> None:
        where = path(API_VERSION, KIND, self.namespace, name)
        await self.api.request("PATCH", where, body=change, content_type=MERGE)

    async def read(self, kind: str, name: str, api_version: str = "v1") -> Manifest | None:
        return await self.api.get(path(api_version, kind, self.namespace, name))

    async def worker_job(self, name: str) -> Manifest | None:
        return await self.read("Job", name, "batch/v1")

    async def pods(self, attempt: str = "demo-a1") -> list[Manifest]:
        found = await self.api.items(
            "v1", "Pod", self.namespace, labelSelector=f"batch.kubernetes.io/job-name={attempt}"
        )
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    async def made(self, number: int, attempt: str = "demo-a1") -> list[Manifest]:
        """The pods of an attempt, once the Job controller has made so many."""
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while len(pods := await self.pods(attempt)) < number:
            assert asyncio.get_running_loop().time() < end, f"{attempt} has {len(pods)} of {number} pods"
            await asyncio.sleep(0.1)
        return pods

    async def status(self, name: str = "demo") -> Manifest:
        found = await self.read(KIND, name, API_VERSION)
        assert found is not None
        return dict(found.get("status", {}))

    async def passes(self, name: str = "demo", number: int = 4) -> Manifest:
        """A few passes, and the status after them."""
        for _ in range(number):
            cluster = KubernetesCluster(JOBS, self.api, self.session, SETTINGS, self.now)
            await reconcile(JOBS, OwnerKey(self.namespace, name), cluster, SETTINGS, self.now())
        return await self.status(name)

    async def until(self, holds: Callable[[Manifest], bool], name: str = "demo") -> Manifest:
        """Passes until the status is as wanted.  Kubernetes' own controllers work meanwhile."""
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while not holds(status := await self.passes(name, 1)):
            assert asyncio.get_running_loop().time() < end, json.dumps(status, indent=1)
            await self._delete_leaving()
            await asyncio.sleep(0.1)
        return status

    async def run(self, pod: Manifest, machine: str = "node-1", **status: Any) -> None:
        """Give a pod a machine that runs its trainer, or whatever `status` says."""
        name = pod["metadata"]["name"]
        where = path("v1", "Pod", self.namespace, name)
        if not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": machine}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
            await self.api.request("POST", f"{where}/binding", body=binding)
        state = {"running": {"startedAt": self.now().strftime("%Y-%m-%dT%H:%M:%SZ")}}
        await self.report(pod, **({"phase": "Running", "containerStatuses": [container("trainer", state)]} | status))

    async def report(self, pod: Manifest, **status: Any) -> None:
        """What a kubelet or a scheduler says about a pod."""
        where = path("v1", "Pod", self.namespace, pod["metadata"]["name"])
        await self.api.request("PATCH", f"{where}/status", body={"status": status}, content_type=STRATEGIC)

    async def _delete_leaving(self) -> None:
        """Do what kubelets do once the containers of a deleted pod have stopped."""
        for pod in await self.api.items("v1", "Pod", self.namespace):
            if "deletionTimestamp" in pod["metadata"]:
                where = path("v1", "Pod", self.namespace, pod["metadata"]["name"])
                try:
                    await self.api.request("DELETE", where, body={"gracePeriodSeconds": 0})
                except ApiError as error:
                    assert error.status == 404, error  # noqa: PT017


def container(name: str, state: Manifest) -> Manifest:
    """The status of a container, as the API server accepts it."""
    is_running = "running" in state
    return {"name": name, "state": state, "ready": is_running, "restartCount": 0, "image": "i", "imageID": "i"}


@asynccontextmanager
async def jobs_on(plane: Plane) -> AsyncIterator[Jobs]:
    """A new namespace of the plane, which has the CRDs."""
    configuration = Configuration()
    await config.load_kube_config(config_file=str(plane.kubeconfig("load")), client_configuration=configuration)
    async with ApiClient(configuration) as client, aiohttp.ClientSession() as session:
        jobs = Jobs(Api(client), session, f"team-{next(_numbers)}")
        await _prepare(jobs)
        yield jobs


async def _prepare(jobs: Jobs) -> None:
    await _ensure(jobs.api, "/api/v1/namespaces", {"metadata": {"name": jobs.namespace}})
    for file in sorted((ROOT / "crds").glob("*.yaml")):
        crd = yaml.safe_load(file.read_text())
        await _ensure(jobs.api, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    served = f"/apis/{API_VERSION}/namespaces/{jobs.namespace}/deepseektrainingjobs"
    account = f"/api/v1/namespaces/{jobs.namespace}/serviceaccounts/default"
    end = asyncio.get_running_loop().time() + PATIENCE_S
    while not (await _answers(jobs.api, served) and await _answers(jobs.api, account)):
        assert asyncio.get_running_loop().time() < end, "the API server does not serve training jobs"
        await asyncio.sleep(0.1)


async def _answers(api: Api, where: str) -> bool:
    """Whether there is something.  The storage of a new kind of objects is not ready at once."""
    try:
        return await api.get(where) is not None
    except ApiError as error:
        if error.status != 429:
            raise
        return False


async def _ensure(api: Api, where: str, manifest: Manifest) -> None:
    try:
        await api.request("POST", where, body=manifest)
    except ApiError as error:
        if error.status != 409:
            raise
