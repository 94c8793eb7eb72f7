"""kopf's watch of the objects of a kind, which own others.  Nothing is decided here: each event becomes a key."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, cast

import kopf

from deepseek_operator.api.names import GROUP, OPERATOR, VERSION
from deepseek_operator.controller.client import SILENCE_S
from deepseek_operator.objects.observed import Manifest, OwnerKey, Sighting

Woken = Callable[[Sighting], None]


def registry(plural: str, woken: Woken) -> kopf.OperatorRegistry:
    """The handler for the objects of a kind, given its `plural`.  It writes nothing."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.event(GROUP, VERSION, plural, registry=handlers)
    async def on_event(namespace: str | None, name: str, event: kopf.RawEvent, **_: Any) -> None:
        woken(sighting(OwnerKey(namespace or "", name), event))

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    return handlers


def sighting(key: OwnerKey, event: kopf.RawEvent) -> Sighting:
    """The sighting of an owner.  An event has no type if a list found the object."""
    owner, type_ = cast(Manifest, event["object"]), event["type"]
    version = str(owner["metadata"].get("resourceVersion", ""))
    present = None if type_ == "DELETED" else owner
    return Sighting(key, version, is_owner=True, owner=present, is_new=type_ == "ADDED")


class Endless:
    """The pauses between tries of a watch, in seconds.  The last one repeats for ever: kopf asks for no length."""

    FIRST: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

    def __iter__(self) -> Iterator[float]:
        yield from self.FIRST
        while True:
            yield 4.0


class NoEssence(kopf.DiffBaseStorage):
    """Keeps kopf from copying and comparing each object, which only handlers of changes need; there are none."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        raise NotImplementedError("this operator writes nothing through kopf")


def settings() -> kopf.OperatorSettings:
    """Watch and never write; survive every answer of the API server."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # the kinds are known, so no right to list namespaces and CRDs is needed
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = NoEssence()
    settings.posting.enabled = False
    settings.queueing.idle_timeout = 0.5  # so long kopf keeps a task for each object
    settings.watching.server_timeout = 300  # each new watch begins with a list, which resyncs every object
    settings.watching.client_timeout = 330
    settings.watching.chunk_size = 250  # objects of a list at a time; all at once would take most of the memory
    settings.watching.inactivity_timeout = SILENCE_S
    settings.process.ultimate_exiting_timeout = None  # kopf must not end the process: the supervisor starts it again
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = Endless()
    return settings


async def watch(
    handlers: kopf.OperatorRegistry, settings: kopf.OperatorSettings, namespaces: Collection[str], stop: asyncio.Event
) -> None:
    """Watch `namespaces` (none means all) until `stop` is set.  Raises what ended a watch.

    When one task of kopf.operator() fails, it waits for all others.  One of them may wait for a login that nobody will
    do any more, so that it never ends (seen with kopf 1.45.2 after HTTP 410).  Here the first task that ends is the
    end, and the supervisor's loop cancels the others.
    """
    tasks = await kopf.spawn_tasks(
        registry=handlers,
        settings=settings,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
        # Only peering shows the identity.  By default it has the name of the user, and the user of an image has none.
        identity=cast(Any, OPERATOR),
    )
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()
