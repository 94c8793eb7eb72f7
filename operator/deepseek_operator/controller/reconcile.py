"""One pass over one object: look, decide, act, report.  No rule of the domain stands here."""

from datetime import datetime
from typing import Protocol, TypeVar

from deepseek_operator.api.conditions import whole_seconds
from deepseek_operator.objects.kind import Kind, Object, Seen
from deepseek_operator.objects.observed import Manifest, Notice, Owner, OwnerKey, Ref, holders
from deepseek_operator.objects.plan import Plan, Refusal, Status
from deepseek_operator.settings import Settings


class RefusedError(Exception):
    """An object cannot be made or changed: the API server refuses it, or its name is taken."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


Object_contra = TypeVar("Object_contra", contravariant=True)
Seen_co = TypeVar("Seen_co", covariant=True)


class Cluster(Protocol[Object_contra, Seen_co]):
    """Everything that a pass can see and do.  Errors but RefusedError go up to the queue, which tries again."""

    async def fetch(self, key: OwnerKey) -> Manifest | None:
        """The object that the pass is about, with its status, or None if it is gone."""

    async def look(self, owner: Object_contra) -> Seen_co:
        """What the kind wants to know about the owner."""

    async def apply(self, manifest: Manifest) -> None:
        """Create the object, or change it if it was made for the same owner.  Raises RefusedError."""

    async def delete(self, ref: Ref) -> None:
        """Delete the object and everything it owns, if it still has `ref.uid`.  It may be gone only later."""

    async def set_status(self, owner: Owner, status: Manifest) -> None:
        """Replace the status.  This is the last write of a pass, and happens only if something changed."""

    async def emit(self, owner: Owner, notice: Notice) -> None:
        """Post a Kubernetes event about the object.  It may get lost."""


async def reconcile(
    kind: Kind[Object, Seen, Status], key: OwnerKey, cluster: Cluster[Object, Seen], settings: Settings, now: datetime
) -> float | None:
    """Bring the object one step closer to what it asks for, and return the seconds until the next pass.

    None means that only an event starts the next pass.  A spec that cannot work is no error here: the status says so,
    where the person who wrote the spec looks.
    """
    thing, now = await _read(kind, key, cluster), whole_seconds(now)
    if thing is None:
        return None
    plan = kind.decide(thing, await cluster.look(thing), settings, now)
    try:
        await _act(plan, cluster)
    except RefusedError as error:
        plan = kind.refused(thing, plan, error.refusal, settings, now)
    if plan.report:
        await _report(thing, plan, cluster)
    return plan.look_again


async def report_failure(
    kind: Kind[Object, Seen, Status], key: OwnerKey, cluster: Cluster[Object, Seen], error: str, now: datetime
) -> None:
    """Say in the status, and by an event, that passes over the object fail.  A pass that does not takes it back."""
    if thing := await _read(kind, key, cluster):
        await _report(thing, kind.failing(thing, error, whole_seconds(now)), cluster)


async def _read(kind: Kind[Object, Seen, Status], key: OwnerKey, cluster: Cluster[Object, Seen]) -> Object | None:
    """The object, or None if it is gone or goes: Kubernetes deletes its children by their ownerReferences.

    One that somebody's finalizers keep does not go, and neither do its children.
    """
    manifest = await cluster.fetch(key)
    if manifest is None or ("deletionTimestamp" in manifest["metadata"] and not holders(manifest)):
        return None
    return kind.read(manifest)


async def _act(plan: Plan[Status], cluster: Cluster[Object, Seen]) -> None:
    for manifest in plan.apply:
        await cluster.apply(manifest)
    for ref in plan.delete:
        await cluster.delete(ref)


async def _report(thing: Object, plan: Plan[Status], cluster: Cluster[Object, Seen]) -> None:
    """Write the status after everything that it reports was done, and post events after that."""
    if plan.status.manifest() != thing.status.manifest():
        await cluster.set_status(thing.owner, plan.status.manifest())
        for notice in plan.notices:
            await cluster.emit(thing.owner, notice)
