"""Watches of the objects that are made for owners.  A change of one wakes its owner.

kopf keeps a task, a queue and a copy for each object that it watches, and an owner has many of these.  The watches here
keep only the version up to which they have seen everything.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import aiohttp

from deepseek_operator.concurrency import contained
from deepseek_operator.controller import metrics
from deepseek_operator.controller.client import JSON, METADATA, Api, ApiError, path
from deepseek_operator.objects.kind import Child
from deepseek_operator.objects.observed import Manifest, OwnerKey, Sighting

log = logging.getLogger(__name__)

PAUSE_S: Final = 1.0  # between two watches; the next one misses nothing.  A proxy on the way may end each watch at once
_GONE: Final = 410  # the API server no longer knows what happened after the version that was asked for


class ChildWatch:
    """Watches one kind of children in one namespace ("" means all); their `label` names the owner.

    It calls `missed` after a time of which nobody knows what happened.
    """

    def __init__(
        self,
        api: Api,
        child: Child,
        label: str,
        namespace: str,
        *,
        woken: Callable[[Sighting], None],
        missed: Callable[[], None],
        pause_s: float = PAUSE_S,
    ) -> None:
        self._api, self._child, self._label, self._pause_s = api, child, label, pause_s
        self._path = path(child.api_version, child.kind, namespace)
        self._woken, self._missed = woken, missed
        self._version = ""

    async def begin(self) -> None:
        """Report all changes from now on.  If the API server does not answer, from its first answer in `run` on."""
        try:
            self._version = await self._newest()
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("no watch of %s yet: %s: %s", self._path, type(error).__name__, error)

    async def run(self) -> None:
        """Watch until cancelled, whatever the API server answers."""
        while True:
            try:
                await contained(self._follow())
            except Exception as error:
                metrics.WATCH_RESTARTS.inc()
                log.warning("the watch of %s stopped: %s: %s", self._path, type(error).__name__, error)
                if isinstance(error, ApiError) and error.status == _GONE:
                    self._version = ""
            await asyncio.sleep(self._pause_s)

    async def _follow(self) -> None:
        if not self._version:
            self._version = await self._newest()
            self._missed()
        shown = JSON if self._child.leaves_words else METADATA
        fields = {"fieldSelector": self._child.selector} if self._child.selector else {}
        query = {"labelSelector": self._label, **fields}
        async for event in self._api.watch(self._path, self._version, accept=shown, **query):
            self._version = event["object"]["metadata"]["resourceVersion"]
            self._wake(event["type"], event["object"])

    async def _newest(self) -> str:
        found = await self._api.request("GET", self._path, {"labelSelector": self._label, "limit": "1"})
        return str(found["metadata"]["resourceVersion"])

    def _wake(self, type_: str, child: Manifest) -> None:
        if type_ == "BOOKMARK":
            return
        meta = child["metadata"]
        departed = child if type_ == "DELETED" and self._child.leaves_words else None
        key = OwnerKey(meta["namespace"], meta["labels"][self._label])
        self._woken(Sighting(key, meta["resourceVersion"], departed=departed))
