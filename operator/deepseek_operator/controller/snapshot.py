"""The world as it was when the operator started, from a few lists instead of a few requests for each owner.

The first pass over an owner runs over the snapshot and needs no request.  Its result counts only if the pass changes
nothing.  If it would change something, the pass is repeated over the cluster.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any, Generic

import aiohttp

from deepseek_operator.concurrency import gathered
from deepseek_operator.controller.client import Api, ApiError
from deepseek_operator.objects.kind import Child, Kind, Object, Reads, Seen
from deepseek_operator.objects.observed import Manifest, OwnerKey, Sighting

log = logging.getLogger(__name__)


class ChangeNeededError(Exception):
    """A pass over the snapshot wants to write."""


class Snapshot:
    """For each owner its children, and the owner itself once a list has found it.

    They are kept as JSON, because thousands of them would not fit into memory as objects.
    """

    def __init__(self, kind: Kind[Any, Any, Any]) -> None:
        self._kind = kind
        self._owners: dict[OwnerKey, bytes] = {}
        self._children: dict[OwnerKey, list[bytes]] = {}
        self._versions: dict[OwnerKey, set[str]] = {}

    async def take(self, api: Api, namespaces: Sequence[str]) -> None:
        """List the children in `namespaces` (none means all).  If that fails, each first pass looks for itself."""
        lists = [(child, namespace) for child in self._kind.children for namespace in namespaces or ("",)]
        try:
            await gathered(*(self._take(api, child, namespace) for child, namespace in lists))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning(
                "there is no snapshot, so every first pass looks for itself: %s: %s", type(error).__name__, error
            )
            self.forget()

    def forget(self) -> None:
        """Forget everything."""
        self._owners.clear()
        self._children.clear()
        self._versions.clear()

    def saw(self, sighting: Sighting) -> None:
        """Keep an owner that a list found.  Forget an owner and its children when a watch reports something new."""
        if sighting.key not in self._children:
            return
        if sighting.listed:
            self._owners[sighting.key] = _packed(sighting.listed)
            self._versions[sighting.key].add(sighting.version)
        elif sighting.version not in self._versions[sighting.key]:
            self.pop(sighting.key)

    def pop(self, key: OwnerKey) -> tuple[Manifest, ...]:
        """The owner, then its children.  Empty unless all of them are known."""
        self._versions.pop(key, None)
        children = self._children.pop(key, None)
        owner = self._owners.pop(key, None)
        return tuple(json.loads(line) for line in (owner, *children)) if owner and children else ()

    async def _take(self, api: Api, child: Child, namespace: str) -> None:
        label = self._kind.labels.name
        async for page in api.pages(child.api_version, child.kind, namespace, labelSelector=label):
            for found in page:
                meta = found["metadata"]
                key = OwnerKey(meta["namespace"], meta["labels"][label])
                spec = {name: found["spec"][name] for name in child.spec if name in found["spec"]}
                self._children.setdefault(key, []).append(_packed(found | {"spec": spec}))
                self._versions.setdefault(key, set()).add(meta["resourceVersion"])


def _packed(manifest: Manifest) -> bytes:
    meta = {name: value for name, value in manifest["metadata"].items() if name != "managedFields"}
    return json.dumps(manifest | {"metadata": meta}).encode()


class Remembered(Generic[Object, Seen]):
    """The Cluster of `reconcile` for one pass over a snapshot."""

    def __init__(self, kind: Kind[Object, Seen, Any], found: Sequence[Manifest], reads: Reads) -> None:
        self._kind, self._owner, self._children, self._reads = kind, found[0], found[1:], reads

    async def fetch(self, key: OwnerKey) -> Manifest | None:  # noqa: ARG002  there is one owner
        return self._owner

    async def look(self, owner: Object) -> Seen:
        return await self._kind.recall(owner, self._reads, self._children)

    async def _change(self, *_: Any, **__: Any) -> None:
        raise ChangeNeededError

    apply = delete = set_status = emit = _change
