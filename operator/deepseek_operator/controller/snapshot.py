"""The world as it was when the operator started: a few lists instead of a few requests for each job.

A first pass over this needs no request.  It is taken for true only if it changes nothing; if it would, it is done anew
with a look of its own.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any, Generic

import aiohttp

from deepseek_operator.controller.client import Api, ApiError
from deepseek_operator.objects.kind import Child, Kind, Object, Reads, Seen
from deepseek_operator.objects.observed import Manifest, OwnerKey, Sighting

log = logging.getLogger(__name__)


class ChangeNeededError(Exception):
    """A pass over what is remembered wants to write."""


class Snapshot:
    """Per owner what was made for it, and the owner itself once a list found it.

    All as JSON: as objects they would not fit.
    """

    def __init__(self, kind: Kind[Any, Any, Any]) -> None:
        self._kind = kind
        self._owners: dict[OwnerKey, bytes] = {}
        self._children: dict[OwnerKey, list[bytes]] = {}
        self._versions: dict[OwnerKey, set[str]] = {}

    async def take(self, api: Api, namespaces: Sequence[str]) -> None:
        """Of all children in `namespaces` (none: in all); without it, every first pass looks by itself."""
        lists = [(child, namespace) for child in self._kind.children for namespace in namespaces or ("",)]
        try:
            await asyncio.gather(*(self._take(api, child, namespace) for child, namespace in lists))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("no snapshot of what is there: %s: %s", type(error).__name__, error)
            self.forget()

    def forget(self) -> None:
        """All of it."""
        self._owners.clear()
        self._children.clear()
        self._versions.clear()

    def saw(self, sighting: Sighting) -> None:
        """Keep an owner that a list found; forget one, and its children, if something about them is news."""
        if sighting.key not in self._children:
            return
        if sighting.listed:
            self._owners[sighting.key] = _packed(sighting.listed)
            self._versions[sighting.key].add(sighting.version)
        elif sighting.version not in self._versions[sighting.key]:
            self.pop(sighting.key)

    def pop(self, key: OwnerKey) -> tuple[Manifest, ...]:
        """The owner, then its children; empty if not all of this is known."""
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
    """Cluster of `reconcile` for one pass over a snapshot."""

    def __init__(self, kind: Kind[Object, Seen, Any], found: Sequence[Manifest], reads: Reads) -> None:
        self._kind, self._owner, self._children, self._reads = kind, found[0], found[1:], reads

    async def fetch(self, key: OwnerKey) -> Manifest | None:  # noqa: ARG002  there is one
        return self._owner

    async def look(self, owner: Object) -> Seen:
        return await self._kind.recall(owner, self._reads, self._children)

    async def _change(self, *_: Any, **__: Any) -> None:
        raise ChangeNeededError

    apply = delete = set_status = emit = _change
