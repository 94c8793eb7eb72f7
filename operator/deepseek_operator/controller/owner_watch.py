"""kopf's watch of the objects of a kind, which own others.  Nothing is decided here: every event becomes a key."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, cast

import kopf

from deepseek_operator.api.names import GROUP, OPERATOR, VERSION
from deepseek_operator.controller.client import SILENCE_S
from deepseek_operator.objects.observed import Manifest, OwnerKey, Sighting

Woken = Callable[[Sighting], None]


def registry(plural: str, woken: Woken) -> kopf.OperatorRegistry:
    """The handler for objects of a kind, named in the `plural`; it writes nothing."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.event(GROUP, VERSION, plural, registry=handlers)
    async def on_event(namespace: str | None, name: str, event: kopf.RawEvent, **_: Any) -> None:
        woken(sighting(OwnerKey(namespace or "", name), event))

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    return handlers


def sighting(key: OwnerKey, event: kopf.RawEvent) -> Sighting:
    """Of the owner itself.  What a list finds has no type."""
    owner, type_ = cast(Manifest, event["object"]), event["type"]
    version = str(owner["metadata"].get("resourceVersion", ""))
    listed = owner if type_ is None else None
    return Sighting(key, version, is_owner=True, listed=listed, created=owner if type_ == "ADDED" else None)


class Endless:
    """Pauses between tries of a watch [s], the last of them for ever: kopf takes what has no length as endless."""

    FIRST: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

    def __iter__(self) -> Iterator[float]:
        yield from self.FIRST
        while True:
            yield 4.0


class NoEssence(kopf.DiffBaseStorage):
    """kopf would copy and compare each object that it sees, for handlers of changes that are not there."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        raise NotImplementedError("this operator writes nothing through kopf")


def settings() -> kopf.OperatorSettings:
    """Watch and never write; survive all that the API server can answer."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # the kinds are known: no right to list namespaces and CRDs is needed
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = NoEssence()
    settings.posting.enabled = False
    settings.queueing.idle_timeout = 0.5  # of the task that kopf keeps for each object
    settings.watching.server_timeout = 300  # each new watch lists first: the resync of every object
    settings.watching.client_timeout = 330
    settings.watching.chunk_size = 250  # of a list: thousands of manifests at once would be most of the memory
    settings.watching.inactivity_timeout = SILENCE_S
    settings.process.ultimate_exiting_timeout = None  # the supervisor's thread goes on after kopf has ended
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = Endless()
    return settings


async def watch(
    handlers: kopf.OperatorRegistry, settings: kopf.OperatorSettings, namespaces: Collection[str], stop: asyncio.Event
) -> None:
    """Watch `namespaces` (none: all) until `stop` is set; raises what ended a watch.

    kopf.operator() would wait for all its tasks when one has failed, and one that waits for a login
    which nobody will do any more keeps it from ever ending (seen with kopf 1.45.2 after HTTP 410).
    Here the first task that ends ends it; the supervisor's loop takes the others along.
    """
    tasks = await kopf.spawn_tasks(
        registry=handlers,
        settings=settings,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
        # Only peering shows it; kopf would ask for the user's name, and an image's user has none.
        identity=cast(Any, OPERATOR),
    )
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()
