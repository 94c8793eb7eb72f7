"""Who applies training jobs as fast as it can, and sees when their pods are there."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import chart
import yaml
from peers import Contestant, Manifest
from plane import OPERATOR, PATIENCE_S, Plane

from deepseek_operator.controller.client import JSON, METADATA

ROOT = Path(__file__).resolve().parents[2]
JOBS = "/apis/training.dstj.io/v1alpha1"
PLURAL = "deepseektrainingjobs"
NAMESPACES = tuple(f"team-{i}" for i in range(4))
WORKERS = 16  # requests at a time
Name = tuple[str, str]  # namespace, job


def training_job(nodes: int) -> Manifest:
    """A job with what jobs have: a profile, a base model, sealed checkpoints, isolation."""
    spec = {
        "trainer": {"profile": "cpu", "numNodes": nodes},
        "model": {"base": {"claimName": "base-models", "path": "model.gguf"}},
        "data": {"format": "Instruction", "train": {"claimName": "corpus", "path": "train.jsonl"}},
        "method": {"type": "LoRA"},
        "optimization": {"maxSteps": 100, "globalBatchSize": nodes, "learningRate": 0.001},
        "checkpoint": {"encryption": {"keyRef": {"secretName": "key"}}},
    }
    return {"apiVersion": JOBS.removeprefix("/apis/"), "kind": "DeepSeekTrainingJob", "spec": spec}


def tells_of_pods(status: Manifest, nodes: int) -> bool:
    return bool(status.get("replicaStatuses", {}).get("nodes", {}).get("active") == nodes)


def tells_of_running(status: Manifest, _: int) -> bool:
    return bool(status.get("phase") == "Running")


OURS = Contestant("product", (OPERATOR,), PLURAL, training_job, {"pods": tells_of_pods, "running": tells_of_running})


def copies(job: Manifest, count: int) -> list[Manifest]:
    """So many of one job, over all namespaces."""
    names = [{"namespace": NAMESPACES[i % len(NAMESPACES)], "name": f"job-{i:04}"} for i in range(count)]
    return [job | {"metadata": name} for name in names]


def training_jobs(jobs: int, nodes: int) -> list[Manifest]:
    return copies(training_job(nodes), jobs)


def name_of(manifest: Manifest) -> Name:
    return manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def job_of(namespace: str, child: str) -> Name:
    """The job of something that was made for it: every operator begins the names of its children with the job's."""
    return namespace, re.sub(r"^(?:dstj-)?(job-\d+).*", r"\1", child)


class Load:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def prepare(self, plane: Plane, *, has_all_rights: bool = False) -> None:
        """CRDs, the profile, namespaces, and what the chart installs."""
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            crd = yaml.safe_load(path.read_text())
            await self._create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
            await self._wait_for(f"{JOBS}/{crd['spec']['names']['plural']}")
        await self._create(f"{JOBS}/trainingprofiles", yaml.safe_load((ROOT / "examples/profile-cpu.yaml").read_text()))
        await self.make_namespaces()
        await self._install_chart(plane)
        if has_all_rights:
            role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
            subject = {"kind": "ServiceAccount", "namespace": chart.NAMESPACE, "name": chart.RELEASE}
            binding = {"metadata": {"name": "all-rights"}, "roleRef": role, "subjects": [subject]}
            await self._create(chart.COLLECTIONS["ClusterRoleBinding"], binding)

    async def make_namespaces(self) -> None:
        for namespace in NAMESPACES:
            await self._create("/api/v1/namespaces", {"metadata": {"name": namespace}})
            await self._wait_for(f"/api/v1/namespaces/{namespace}/serviceaccounts/default")

    async def _install_chart(self, plane: Plane) -> None:
        """All but the pods of the operator, and a kubeconfig with the token that it has in a cluster."""
        namespace, name = OPERATOR.split(":")[2:]
        await self._create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        for collection, manifest in chart.objects():
            await self._create(collection, manifest)
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = await self._create(account, {"spec": {"expirationSeconds": 86400}})
        config = json.loads(plane.kubeconfig("load").read_text())
        config["users"][0]["user"] = {"token": answer["status"]["token"]}
        plane.kubeconfig("operator").write_text(json.dumps(config))

    async def apply(self, jobs: Iterable[Manifest], plural: str = PLURAL) -> dict[Name, float]:
        """Create all, which are of one kind; the time at which each was sent [s since the epoch]."""
        sent: dict[Name, float] = {}
        left = iter(jobs)

        async def work() -> None:
            for job in left:
                sent[name_of(job)] = time.time()
                await self._create(f"/apis/{job['apiVersion']}/namespaces/{name_of(job)[0]}/{plural}", job)

        await asyncio.gather(*(work() for _ in range(WORKERS)))
        return sent

    async def all_pods_made(self, expected: Iterable[Name], nodes: int) -> dict[Name, float]:
        """Watch until each job has `nodes` pods; when the last of them was seen [s since the epoch]."""
        pods: dict[Name, set[str]] = {name: set() for name in expected}
        done: dict[Name, float] = {}
        while len(done) < len(pods):  # the API server ends a watch that cannot keep up; the next one tells all again
            async for meta in self._watched_pods():
                job = job_of(meta["namespace"], meta["name"])
                pods[job].add(meta["name"])
                if len(pods[job]) == nodes:
                    done.setdefault(job, time.time())
                if len(done) == len(pods):
                    break
        return done

    async def all_pods_reported(self, expected: Iterable[Name], nodes: int) -> dict[Name, float]:
        """Watch until the status of each job tells of `nodes` pods; when it first did [s since the epoch]."""
        return await self.all_reported(OURS.path, expected, lambda status: tells_of_pods(status, nodes))

    async def all_reported(
        self, path: str, expected: Iterable[Name], is_right: Callable[[Manifest], bool]
    ) -> dict[Name, float]:
        """Watch until the status of each job is right; when it first was [s since the epoch]."""
        left, done = set(expected), dict[Name, float]()
        while left:
            async for event in self._watched(path):
                job = event["object"]
                if name_of(job) in left and is_right(job.get("status", {})):
                    left.remove(name_of(job))
                    done[name_of(job)] = time.time()
                if not left:
                    break
        return done

    async def _watched_pods(self) -> AsyncIterator[Manifest]:
        """Metadata of pods as they are made, until the watch ends."""
        async for event in self._watched("/api/v1/pods", METADATA):
            if event["type"] == "ADDED":
                yield event["object"]["metadata"]

    async def _watched(self, path: str, accept: str = JSON) -> AsyncIterator[Manifest]:
        """Events about what there is and what follows, until the watch ends."""
        query = {"watch": "true", "resourceVersion": "0"}
        headers, timeout = {"Accept": accept}, aiohttp.ClientTimeout(total=None)
        async with self._session.get(path, params=query, headers=headers, timeout=timeout) as stream:
            async for line in stream.content:
                yield json.loads(line)

    async def run(self, pod: Manifest, address: str) -> None:
        """What a scheduler and a kubelet do to a pod until it is ready."""
        meta = pod["metadata"]
        where = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        target = {"apiVersion": "v1", "kind": "Node", "name": "node"}
        await self._create(f"{where}/binding", {"metadata": {"name": meta["name"]}, "target": target})
        ready = {"type": "Ready", "status": "True"}
        body = {"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [ready]}}
        headers = {"Content-Type": "application/strategic-merge-patch+json"}
        async with self._session.patch(f"{where}/status", data=json.dumps(body), headers=headers) as answer:
            answer.raise_for_status()

    async def run_all(self, address: str) -> None:
        """Get each pod ready as soon as it is made, until cancelled."""
        while True:
            async for meta in self._watched_pods():
                await self.run({"metadata": meta}, address)

    async def items(self, path: str) -> list[Manifest]:
        async with self._session.get(path) as answer:
            answer.raise_for_status()
            return list((await answer.json())["items"])

    async def _create(self, path: str, manifest: Manifest) -> Any:
        async with self._session.post(path, json=manifest) as answer:
            if answer.status != 201:
                raise RuntimeError(f"POST {path}: {answer.status}: {await answer.text()}")
            return await answer.json()

    async def _wait_for(self, path: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await self._is_there(path):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.1)

    async def _is_there(self, path: str) -> bool:
        async with self._session.get(path) as answer:
            return answer.status == 200


@asynccontextmanager
async def load_on(plane: Plane) -> AsyncIterator[Load]:
    connector = aiohttp.TCPConnector(ssl=plane.tls("load"), limit=0)
    async with aiohttp.ClientSession(plane.server, connector=connector, read_bufsize=1 << 22) as session:
        yield Load(session)
