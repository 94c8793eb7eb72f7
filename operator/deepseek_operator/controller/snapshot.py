"""The world as it was when the operator started: a few lists instead of a few requests for each job.

A first pass over this needs no request.  It is taken for true only if it changes nothing; if it would, it is done anew
with a look of its own.
"""

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final

import aiohttp

from deepseek_operator.controller.child_watch import CHILDREN
from deepseek_operator.controller.client import Api, ApiError
from deepseek_operator.jobs import labels
from deepseek_operator.jobs.reconcile import Cluster
from deepseek_operator.objects.observed import JobKey, Manifest, Observed, Owner, Sighting

log = logging.getLogger(__name__)

_OF_SPEC: Final = ("parallelism", "suspend", "nodeName")  # all that a decision asks of a child's


class ChangeNeededError(Exception):
    """A pass over what is remembered wants to write."""


class Snapshot:
    """Per training job its worker jobs and pods, and the job itself once a list told of it.

    All as JSON: as objects they would not fit.
    """

    def __init__(self) -> None:
        self._jobs: dict[JobKey, bytes] = {}
        self._children: dict[JobKey, list[bytes]] = {}
        self._versions: dict[JobKey, set[str]] = {}

    async def take(self, api: Api, namespaces: Sequence[str]) -> None:
        """Of all children in `namespaces` (none: in all); without it, every first pass looks by itself."""
        lists = [(child, namespace) for child in CHILDREN for namespace in namespaces or ("",)]
        try:
            await asyncio.gather(*(self._take(api, *child, namespace) for child, namespace in lists))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("no snapshot of worker jobs and pods: %s: %s", type(error).__name__, error)
            self.forget()

    def forget(self) -> None:
        """All of it."""
        self._jobs.clear()
        self._children.clear()
        self._versions.clear()

    def saw(self, sighting: Sighting) -> None:
        """Keep a job that a list found; forget one, and its children, if something about them is news."""
        if sighting.key not in self._children:
            return
        if sighting.listed:
            self._jobs[sighting.key] = _packed(sighting.listed)
            self._versions[sighting.key].add(sighting.version)
        elif sighting.version not in self._versions[sighting.key]:
            self.pop(sighting.key)

    def pop(self, key: JobKey) -> tuple[Manifest, ...]:
        """The training job, then its worker jobs and pods; empty if not all of this is known."""
        self._versions.pop(key, None)
        children = self._children.pop(key, None)
        job = self._jobs.pop(key, None)
        return tuple(json.loads(line) for line in (job, *children)) if job and children else ()

    async def _take(self, api: Api, api_version: str, kind: str, namespace: str) -> None:
        async for page in api.pages(api_version, kind, namespace, labelSelector=labels.JOB_NAME):
            for child in page:
                meta = child["metadata"]
                key = JobKey(meta["namespace"], meta["labels"][labels.JOB_NAME])
                spec = {name: child["spec"][name] for name in _OF_SPEC if name in child["spec"]}
                self._children.setdefault(key, []).append(_packed(child | {"spec": spec}))
                self._versions.setdefault(key, set()).add(meta["resourceVersion"])


def _packed(manifest: Manifest) -> bytes:
    meta = {name: value for name, value in manifest["metadata"].items() if name != "managedFields"}
    return json.dumps(manifest | {"metadata": meta}).encode()


class Remembered:
    """Cluster of `reconcile` for one pass over a snapshot."""

    def __init__(self, found: Sequence[Manifest], cluster: Cluster) -> None:
        self._job, self._children, self._cluster = found[0], found[1:], cluster

    async def training_job(self, key: JobKey) -> Manifest | None:  # noqa: ARG002  there is one
        return self._job

    async def profile(self, name: str) -> Manifest | None:
        return await self._cluster.profile(name)

    async def observe(self, owner: Owner, attempt: int) -> Observed:  # noqa: ARG002  quotas are not remembered
        own = [child for child in self._children if child["metadata"]["labels"].get(labels.JOB_UID) == owner.uid]
        return Observed(tuple(_of_kind(own, "Job")), tuple(_of_kind(own, "Pod")), isolated=None)

    async def _change(self, *_: Any, **__: Any) -> None:
        raise ChangeNeededError

    apply = delete = set_status = emit = _change


def _of_kind(manifests: Sequence[Manifest], kind: str) -> Iterator[Manifest]:
    return (manifest for manifest in manifests if manifest["kind"] == kind)
