"""Leader election by a Lease: one replica works, and the others wait.

The protocol and its defaults are those of client-go's leaderelection: a lease of 15 s, 10 s to renew it, 2 s between
tries.  A replica judges by its own clock since the last change whether a lease is over.  So the clocks of different
machines need not agree.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from deepseek_operator.concurrency import within
from deepseek_operator.controller import metrics
from deepseek_operator.controller.client import Api, ApiError, path
from deepseek_operator.objects.observed import Manifest

log = logging.getLogger(__name__)

LEASE_S: Final = 15
RENEW_WITHIN_S: Final = 10.0
RETRY_S: Final = 2.0


class LeaseStore(Protocol):
    async def read(self) -> Manifest | None:
        """The Lease, or None."""

    async def write(self, lease: Manifest) -> bool:
        """Create the lease if it has no resourceVersion, else replace that version.  False: somebody was faster."""


@dataclass
class Candidate:
    """The lease as one replica sees it."""

    store: LeaseStore
    identity: str
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    within: Callable[..., Awaitable[Any]] = within
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _seen: Any = None
    _seen_at: float = 0.0
    _renewed_at: float = 0.0

    async def acquire(self) -> None:
        """Return when this replica is the leader."""
        while not await self._try():
            await self.sleep(RETRY_S)
        metrics.LEADER.set(1)
        log.info("leading as %s", self.identity)

    async def hold(self) -> None:
        """Renew the lease.  Return when that did not succeed in time, because another replica may then lead."""
        while (left := self._left_s) > 0:
            await self.sleep(min(RETRY_S, left))
            await self._try(self._left_s)
        metrics.LEADER.set(0)
        log.error("lost the lease: it was not renewed for %.0f s", RENEW_WITHIN_S)

    async def release(self) -> None:
        """Let another replica lead at once."""
        metrics.LEADER.set(0)
        lease = await self.store.read()
        if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
            await self.store.write(
                {**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
            )

    @property
    def _left_s(self) -> float:
        """The time left to renew, from before the last request on; others count from when they see what it wrote."""
        return self._renewed_at + RENEW_WITHIN_S - self.clock()

    async def _try(self, patience_s: float = RENEW_WITHIN_S) -> bool:
        began = self.clock()
        try:
            is_ours: bool = await self.within(min(patience_s, RENEW_WITHIN_S / 2), self._take())
        except Exception as error:
            log.warning("the lease could not be read or written: %s: %s", type(error).__name__, error)
            return False
        if is_ours:
            self._renewed_at = began
        return is_ours

    async def _take(self) -> bool:
        lease = await self.store.read()
        spec = lease["spec"] if lease else {}
        if self._seen != spec:
            self._seen, self._seen_at = spec, self.clock()
        holder = spec.get("holderIdentity")
        if holder not in {None, "", self.identity} and self.clock() - self._seen_at < spec.get(
            "leaseDurationSeconds", LEASE_S
        ):
            return False
        return await self.store.write({**(lease or {}), "spec": self._spec(spec, took_over=holder != self.identity)})

    def _spec(self, before: Manifest, *, took_over: bool) -> Manifest:
        time = self.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": LEASE_S,
            "acquireTime": time if took_over else before.get("acquireTime", time),
            "renewTime": time,
            "leaseTransitions": before.get("leaseTransitions", 0) + (took_over and bool(before)),
        }


class ApiLease:
    """The LeaseStore in the API server."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api, self._name = api, name
        self._list = path("coordination.k8s.io/v1", "Lease", namespace)
        self._meta = {"namespace": namespace, "name": name}

    async def read(self) -> Manifest | None:
        return await self._api.get(f"{self._list}/{self._name}")

    async def write(self, lease: Manifest) -> bool:
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": self._meta, **lease}
        exists = "resourceVersion" in body["metadata"]
        try:
            await self._api.request(
                "PUT" if exists else "POST", f"{self._list}/{self._name}" if exists else self._list, body=body
            )
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True
