"""One pass over one object: look, decide, act, report.  Holds no rule of the domain."""

from datetime import datetime
from typing import Protocol, TypeVar

from deepseek_operator.api.conditions import whole_seconds
from deepseek_operator.objects.kind import Kind, Object, Seen
from deepseek_operator.objects.observed import Manifest, Notice, Owner, OwnerKey, Ref
from deepseek_operator.objects.plan import Plan, Status
from deepseek_operator.settings import Settings


class RefusedError(Exception):
    """The API server will not have an object: quota, admission policy, or an invalid or immutable field."""


Object_contra = TypeVar("Object_contra", contravariant=True)
Seen_co = TypeVar("Seen_co", covariant=True)


class Cluster(Protocol[Object_contra, Seen_co]):
    """All that a pass can see and do.  Errors other than RefusedError go up to the queue, which tries again."""

    async def fetch(self, key: OwnerKey) -> Manifest | None:
        """The object that the pass is about, with its status, or None."""

    async def look(self, owner: Object_contra) -> Seen_co:
        """What there is of it in the cluster, as its kind wants to see it."""

    async def apply(self, manifest: Manifest) -> None:
        """Create or update by server-side apply.  Raises RefusedError."""

    async def delete(self, ref: Ref) -> None:
        """Delete with everything it owns, if it is still the one with `ref.uid`; done at once, gone later."""

    async def set_status(self, owner: Owner, status: Manifest) -> None:
        """Replace what the operator reports; the last write of a pass, and only if something changed."""

    async def emit(self, owner: Owner, notice: Notice) -> None:
        """Post a Kubernetes event about the object; may be lost."""


async def reconcile(
    kind: Kind[Object, Seen, Status], key: OwnerKey, cluster: Cluster[Object, Seen], settings: Settings, now: datetime
) -> float | None:
    """Bring `key` one step closer; return the seconds until the next look.

    None means that nothing is left to wait for but an event.  A spec that cannot work is not an
    error here: it ends up in the status, where the person who wrote it looks.
    """
    manifest = await cluster.fetch(key)
    if manifest is None or "deletionTimestamp" in manifest["metadata"]:
        return None  # children go with their owner: Kubernetes collects them by ownerReferences
    thing, now = kind.read(manifest), whole_seconds(now)
    plan = kind.decide(thing, await cluster.look(thing), settings, now)
    try:
        await _act(plan, cluster)
    except RefusedError as refusal:
        plan = kind.refused(thing, plan, str(refusal), settings, now)
    if plan.report:
        await _report(thing, plan, cluster)
    return plan.look_again


async def _act(plan: Plan[Status], cluster: Cluster[Object, Seen]) -> None:
    for manifest in plan.apply:
        await cluster.apply(manifest)
    for ref in plan.delete:
        await cluster.delete(ref)


async def _report(thing: Object, plan: Plan[Status], cluster: Cluster[Object, Seen]) -> None:
    """Write the status last, so that it never runs ahead of what was done; tell people after that."""
    if plan.status.manifest() != thing.status.manifest():
        await cluster.set_status(thing.owner, plan.status.manifest())
        for notice in plan.notices:
            await cluster.emit(thing.owner, notice)
