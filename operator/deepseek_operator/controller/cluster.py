"""The real cluster behind a pass.  It reads and writes the objects of one kind, and what is made for them."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic
from uuid import uuid4

import aiohttp

from deepseek_operator.api.names import API_VERSION, OPERATOR
from deepseek_operator.controller import metrics
from deepseek_operator.controller.apply import apply
from deepseek_operator.controller.client import Api, ApiError, NamespaceLeavingError, path
from deepseek_operator.controller.pages import read_page
from deepseek_operator.controller.shared_reads import Shared
from deepseek_operator.objects.kind import Child, Kind, Object, Seen
from deepseek_operator.objects.observed import Manifest, Notice, Owner, OwnerKey, Ref, Sighting, WarningEvent
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.foreign import one_line
from deepseek_trainer.contract.times import rfc3339

log = logging.getLogger(__name__)

MAX_DELETED: Final = 10_000  # deleted owners that are remembered, at 200 bytes each
PAUSE_S: Final = 5.0  # between two reports that tell of no transition: pods come and get ready one after the other
MAX_NOTICE: Final = 1024  # [characters]; the API server refuses events with longer messages


class KubernetesCluster(Generic[Object, Seen]):
    """The Cluster of `reconcile` and the Reads of a look, over the API server.  `session` reads the pages of pods."""

    def __init__(
        self,
        kind: Kind[Object, Seen, Any],
        api: Api,
        session: aiohttp.ClientSession,
        settings: Settings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kind, self._api, self._session, self._settings, self._now = kind, api, session, settings, now
        self._shared = Shared(api.get)
        self._quotas = Shared(self._quotas_in)
        self._lists = Shared(self._list)
        self._phases: dict[OwnerKey, str] = {}
        self._created: dict[OwnerKey, Manifest] = {}  # created owners that a watch reported, before their first pass
        self._untouched: dict[OwnerKey, str] = {}  # their uids during their first pass
        # The resourceVersion of the status that was written last, whether that pass saw the present spec, and when.
        self._written: dict[OwnerKey, tuple[str, bool, datetime]] = {}
        self._departed: dict[OwnerKey, Manifest] = {}  # the last deleted child that the kind keeps
        self._leaving: dict[str, datetime] = {}  # namespaces that are being deleted, and until when to believe it
        self._deleted: dict[OwnerKey, None] = {}  # the owners deleted last, of which something may be left

    def saw(self, sighting: Sighting) -> None:
        """Keep what a look would not find, or would need a request for.

        Nothing was made yet for an owner that was created just now.  A pod that was asked to stop is deleted a moment
        after it ended, mostly before a pass can read its last words.  An operator that dies in between forgets those
        words, and the progress of the next attempt makes up for that.
        """
        if sighting.is_owner:
            self._created.pop(sighting.key, None)  # it has changed since
        if sighting.owner and sighting.is_new:
            self._created[sighting.key] = sighting.owner
            self._leaving.pop(sighting.key.namespace, None)  # it is another one of that name
        if sighting.departed and self._kind.keeps(sighting.departed):
            self._departed[sighting.key] = last_words_of(sighting.departed)

    async def fetch(self, key: OwnerKey) -> Manifest | None:
        self._untouched.pop(key, None)
        if manifest := self._created.pop(key, None):
            if key not in self._phases and key not in self._deleted:  # else an earlier one may have left something
                self._untouched[key] = manifest["metadata"]["uid"]
        else:
            manifest = await self._api.get(path(API_VERSION, self._kind.name, key.namespace, key.name))
        self.count(key, manifest)
        if manifest:
            self._require_staying(key.namespace)
        return manifest

    async def look(self, owner: Object) -> Seen:
        return await self._kind.look(owner, self, self._settings, self._now())

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Manifest | None:
        return await self._api.get(path(api_version, kind, namespace, name))

    async def get_shared(self, api_version: str, kind: str, name: str) -> Manifest | None:
        return await self._shared.ask(path(api_version, kind, name=name))

    async def children(self, owner: Owner, child: Child) -> tuple[Manifest, ...]:
        if self._untouched.get(owner.key) == owner.uid:
            return ()
        selector = f"{self._kind.labels.name}={owner.name}"
        return await self._api.items(child.api_version, child.kind, owner.namespace, labelSelector=selector)

    def departed(self, owner: Owner) -> tuple[Manifest, ...]:
        child = self._departed.get(owner.key)
        return (child,) if child and child["metadata"]["labels"].get(self._kind.labels.uid) == owner.uid else ()

    async def quotas(self, namespace: str) -> tuple[Manifest, ...]:
        return await self._quotas.ask(namespace)

    async def warnings(self, manifest: Manifest) -> tuple[WarningEvent, ...]:
        meta = manifest["metadata"]
        found = await self._events(meta["namespace"], f"involvedObject.uid={meta['uid']},type=Warning")
        return tuple(_warning(manifest["kind"], meta["name"], event) for event in found)

    async def events(self, namespace: str, kind: str) -> tuple[WarningEvent, ...]:
        found = await self._events(namespace, f"involvedObject.kind={kind}")
        return tuple(_warning(kind, event.get("involvedObject", {}).get("name", ""), event) for event in found)

    async def _events(self, namespace: str, selector: str) -> list[Manifest]:
        """The events that `selector` selects, newest first."""
        events = await self._api.items("v1", "Event", namespace, fieldSelector=selector)
        return sorted(events, key=lambda event: event.get("lastTimestamp") or "", reverse=True)

    async def listed(self, api_version: str, kind: str, namespace: str) -> tuple[Manifest, ...]:
        return await self._lists.ask(f"{api_version} {kind} {namespace}")

    async def _list(self, what: str) -> tuple[Manifest, ...]:
        api_version, kind, namespace = what.split(" ")
        try:
            return await self._api.items(api_version, kind, namespace)
        except ApiError as error:
            if error.status not in {403, 404}:
                raise
            log.warning("no %s can be listed: %s", kind, error)  # the role is that of an older chart
            return ()

    async def page(self, pod: Manifest, port: int, path: str) -> bytes | None:
        address = pod.get("status", {}).get("podIP")
        return await read_page(self._session, address, port, path) if address else None

    async def apply(self, manifest: Manifest) -> None:
        with self._leaving_noticed(manifest["metadata"]["namespace"]):
            await apply(self._api, self._kind, manifest, is_new=self._is_new(manifest))

    @contextmanager
    def _leaving_noticed(self, namespace: str) -> Iterator[None]:
        """Remember a namespace that is being deleted, so that no other pass tries to make something in it."""
        self._require_staying(namespace)
        try:
            yield
        except NamespaceLeavingError:
            self._leaving[namespace] = self._now() + timedelta(seconds=self._settings.resync_s)
            raise

    def _require_staying(self, namespace: str) -> None:
        if namespace not in self._leaving:
            return
        if self._leaving[namespace] > self._now():
            raise NamespaceLeavingError(403, f"namespace {namespace} is being deleted")
        del self._leaving[namespace]

    def _is_new(self, manifest: Manifest) -> bool:
        """Whether the object is for an owner for which nothing was made yet."""
        meta, of = manifest["metadata"], self._kind.labels
        owner = OwnerKey(meta["namespace"], meta.get("labels", {}).get(of.name, ""))
        return owner in self._untouched and self._untouched[owner] == meta["labels"].get(of.uid)

    async def delete(self, ref: Ref) -> None:
        where = path(ref.api_version, ref.kind, ref.namespace, ref.name)
        options = {"preconditions": {"uid": ref.uid}, "propagationPolicy": "Background"}
        try:
            await self._api.request("DELETE", where, body=options)
        except ApiError as error:
            if error.status not in {404, 409}:  # it is gone, or another one has its name
                raise

    async def set_status(self, owner: Owner, status: Manifest) -> None:
        # With the uid, the API server refuses to give the status to a later object of the same name.
        meta = {"namespace": owner.namespace, "name": owner.name, "uid": owner.uid}
        manifest = {"apiVersion": API_VERSION, "kind": self._kind.name, "metadata": meta, "status": status}
        try:
            written = json.loads(await self._api.apply(manifest, "status"))["metadata"]
        except ApiError as error:
            if error.status not in {404, 409}:
                raise
            return
        metrics.STATUS_WRITES.inc()
        self.count(owner.key, {"status": status})
        # This pass did not see a spec that changed in between, so the event of that change must wake the next pass.
        saw_spec = written["generation"] == status["observedGeneration"]
        self._written[owner.key] = written["resourceVersion"], saw_spec, self._now()

    def is_echo(self, sighting: Sighting) -> bool:
        """Whether the sighting shows only a status that was written here, by a pass that saw the present spec."""
        return self._written.get(sighting.key, ())[:2] == (sighting.version, True)

    def written(self, key: OwnerKey) -> str:
        """The resourceVersion of the owner's status that was written here last, or ''."""
        return self._written[key][0] if key in self._written else ""

    def pause_s(self, key: OwnerKey) -> float:
        """The time to wait until the status of the owner is written again for what is worth no notice."""
        if key not in self._written:
            return 0.0
        return max(0.0, PAUSE_S - (self._now() - self._written[key][2]).total_seconds())

    async def emit(self, owner: Owner, notice: Notice) -> None:
        metrics.TRANSITIONS.labels(notice.reason).inc()
        time = rfc3339(self._now())
        regarding = {
            "apiVersion": API_VERSION,
            "kind": self._kind.name,
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
            "message": one_line(notice.message, MAX_NOTICE),
            "source": {"component": OPERATOR},
            "reportingComponent": OPERATOR,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        try:
            with self._leaving_noticed(owner.namespace):
                await self._api.request("POST", path("v1", "Event", owner.namespace), body=event)
        except ApiError as error:
            log.warning("an event about %s could not be posted: %s", owner.key, error)

    def count(self, key: OwnerKey, manifest: Manifest | None) -> None:
        """Count the owner in the gauge by its phase; None means that it is gone."""
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

    def _remember(self, key: OwnerKey) -> None:
        self._deleted[key] = None
        if len(self._deleted) > MAX_DELETED:
            del self._deleted[next(iter(self._deleted))]

    async def _quotas_in(self, namespace: str) -> tuple[Manifest, ...]:
        try:
            return await self._api.items("v1", "ResourceQuota", namespace)
        except ApiError as error:
            if error.status != 403:
                raise
            log.warning("the quotas of %s cannot be read: %s", namespace, error)  # the role is that of an older chart
            return ()


def _warning(kind: str, name: str, event: Manifest) -> WarningEvent:
    return WarningEvent(kind, name, event.get("reason", ""), event.get("message", ""))


def last_words_of(pod: Manifest) -> Manifest:
    """The parts of a pod's manifest that say whose it was and how its containers ended."""
    meta = {field: pod["metadata"].get(field, {}) for field in ("labels", "annotations")}
    return {"metadata": meta, "status": {"containerStatuses": pod.get("status", {}).get("containerStatuses", [])}}
