"""Watches of the objects that are made for owners.  A change of one wakes its owner.

kopf keeps a task, a queue and a copy for each object that it watches, and an owner has many of these.  The watches here
keep the version up to which they have seen everything, and put what they saw into the memory.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import aiohttp

from deepseek_operator.concurrency import contained
from deepseek_operator.controller import metrics
from deepseek_operator.controller.client import Api, ApiError, path
from deepseek_operator.controller.memory import Memory
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
        memory: Memory,
        *,
        woken: Callable[[Sighting], None],
        missed: Callable[[], None],
        pause_s: float = PAUSE_S,
    ) -> None:
        self._api, self._child, self._label, self._pause_s = api, child, label, pause_s
        self._path, self._namespace = path(child.api_version, child.kind, namespace), namespace
        self._memory = memory
        memory.expect(self._path)
        self._woken, self._missed = woken, missed
        self._version = ""

    async def begin(self) -> None:
        """Report all changes from now on.  If the API server does not answer, from its first answer in `run` on."""
        try:
            self._version = await self._list()
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
                    self._memory.expect(self._path)
            await asyncio.sleep(self._pause_s)

    async def _follow(self) -> None:
        if not self._version:
            self._version = await self._list()
            self._missed()
        async for event in self._api.watch(self._path, self._version, labelSelector=self._label):
            self._version = event["object"]["metadata"]["resourceVersion"]
            self._memory.heard(self._path)
            if event["type"] != "BOOKMARK":
                self._saw(event["object"], is_deleted=event["type"] == "DELETED")

    async def _list(self) -> str:
        """Put all that there is into the memory.  Returns the version from which a watch goes on."""
        version, uids, child = "", set[str](), self._child
        async for page in self._api.pages(child.api_version, child.kind, self._namespace, labelSelector=self._label):
            version = page.version
            uids |= {self._memory.keep(self._path, child, found) for found in page.items}
        self._memory.keep_only(self._path, uids)
        self._memory.heard(self._path)
        return version

    def _saw(self, found: Manifest, *, is_deleted: bool) -> None:
        meta = found["metadata"]
        key = OwnerKey(meta["namespace"], meta["labels"][self._label])
        if is_deleted:
            self._memory.drop(meta["uid"])
        else:
            self._memory.keep(self._path, self._child, found)
        if is_deleted or self._child.wakes(found):
            departed = found if is_deleted and self._child.leaves_words else None
            self._woken(Sighting(key, meta["resourceVersion"], departed=departed))
