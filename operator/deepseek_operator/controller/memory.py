"""What the watches saw: the owners, and what was made for them.

A pass over the memory needs no request.  The memory may lag behind the cluster, so such a pass does no more than to
report what goes on.  If there is more to do, the pass is repeated over the cluster.
"""

import json
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Generic

from deepseek_operator.objects.kind import AnyKind, Child, Kind, Object, Seen
from deepseek_operator.objects.observed import Manifest, Notice, Owner, OwnerKey, Sighting
from deepseek_operator.objects.plan import Plan, Status
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.documents import json_text

FRESH_S: Final = 100.0  # an API server sends a bookmark about every 60 s; what a watch saw before is not believed


class ChangeNeededError(Exception):
    """A pass over the memory wants to do more than to report."""


class Memory:
    """For each owner its manifest, and its children by uid.

    They are kept as compressed JSON, without what no decision reads: as objects, thousands would take too much memory.
    """

    def __init__(self, kind: AnyKind, clock: Callable[[], float] = time.monotonic) -> None:
        self._kind, self._clock = kind, clock
        self._owners: dict[OwnerKey, tuple[int, bytes]] = {}  # with their version
        self._children: dict[OwnerKey, dict[str, tuple[str, bytes]]] = {}  # with the name of their watch
        self._owner_of: dict[str, OwnerKey] = {}  # by the uid of the child
        self._heard: dict[str, float | None] = {}  # when each watch last told something; None: it does not know all yet

    def expect(self, watch: str) -> None:
        """A watch of that name exists, and does not know yet what there is."""
        self._heard[watch] = None

    def heard(self, watch: str) -> None:
        """The watch has told everything up to now."""
        self._heard[watch] = self._clock()

    def keep(self, watch: str, child: Child, found: Manifest) -> str:
        """Keep a child in its present state.  Returns its uid."""
        meta = found["metadata"]
        uid, key = str(meta["uid"]), OwnerKey(meta["namespace"], meta["labels"][self._kind.labels.name])
        if self._owner_of.get(uid, key) != key:
            self.drop(uid)  # somebody changed the label that names its owner
        self._owner_of[uid] = key
        self._children.setdefault(key, {})[uid] = watch, _packed(_read_of(child, found))
        return uid

    def drop(self, uid: str) -> None:
        """A child was deleted."""
        if key := self._owner_of.pop(uid, None):
            del self._children[key][uid]
            if not self._children[key]:
                del self._children[key]

    def keep_only(self, watch: str, uids: Collection[str]) -> None:
        """A list showed that these are all children that the watch is about."""
        for children in tuple(self._children.values()):
            for uid in [uid for uid, (name, _) in children.items() if name == watch and uid not in uids]:
                self.drop(uid)

    def saw(self, sighting: Sighting) -> None:
        """Keep an owner in its present state."""
        if sighting.owner:
            meta = {name: value for name, value in sighting.owner["metadata"].items() if name != "managedFields"}
            self._owners[sighting.key] = _number(sighting.version), _packed(sighting.owner | {"metadata": meta})
        elif sighting.is_owner:
            self._owners.pop(sighting.key, None)

    def owners(self) -> tuple[OwnerKey, ...]:
        return tuple(self._owners)

    def forget(self, keys: Iterable[OwnerKey]) -> None:
        """A list showed that these owners are gone."""
        for key in keys:
            self._owners.pop(key, None)

    def of(self, key: OwnerKey, written: str = "") -> tuple[Manifest, ...]:
        """The owner, then its children.  Empty if one of them is not known, or may be old.

        `written` is the version of the owner's last status.  An owner of an earlier version is an old one.
        """
        owner, children = self._owners.get(key), self._children.get(key)
        if not owner or not children or not self._is_fresh() or owner[0] < _number(written):
            return ()
        return tuple(_unpacked(packed) for packed in (owner[1], *(packed for _, packed in children.values())))

    def _is_fresh(self) -> bool:
        oldest = self._clock() - FRESH_S
        return all(heard is not None and heard >= oldest for heard in self._heard.values())


def _packed(manifest: Manifest) -> bytes:
    return zlib.compress(json_text(manifest).encode(), 1)


def _unpacked(packed: bytes) -> Manifest:
    manifest: Manifest = json.loads(zlib.decompress(packed))
    return manifest


def _read_of(child: Child, found: Manifest) -> Manifest:
    """What decisions read of a child."""
    meta = {name: value for name, value in found["metadata"].items() if name != "managedFields"}
    meta["annotations"] = _only(child.annotations, meta.get("annotations", {}))
    known = {"apiVersion": child.api_version, "kind": child.kind, "status": found.get("status", {})}
    return known | {"metadata": meta, "spec": _only(child.spec, found.get("spec", {}))}


def _only(names: Collection[str], fields: Manifest) -> Manifest:
    return {name: fields[name] for name in names if name in fields}


def _number(version: str) -> int:
    """A resourceVersion, of which the later one is larger."""
    return int(version) if version.isdecimal() else 0


class Remembered(Generic[Object, Seen]):
    """The Cluster of `reconcile` for one pass over the memory, whose kind has to be `careful`."""

    def __init__(
        self, kind: Kind[Object, Seen, Any], found: Sequence[Manifest], cluster: Any, settings: Settings, now: datetime
    ) -> None:
        self._kind, self._owner, self._children = kind, found[0], found[1:]
        self._cluster, self._settings, self._now = cluster, settings, now

    async def fetch(self, key: OwnerKey) -> Manifest | None:  # noqa: ARG002  there is one owner
        return self._owner

    async def look(self, owner: Object) -> Seen:
        return await self._kind.recall(owner, self._cluster, self._settings, self._now, self._children)

    async def set_status(self, owner: Owner, status: Manifest) -> None:
        await self._cluster.set_status(owner, status)

    async def emit(self, owner: Owner, notice: Notice) -> None:
        await self._cluster.emit(owner, notice)

    async def _act(self, _: Any) -> None:
        raise ChangeNeededError

    apply = delete = _act


def careful(kind: Kind[Object, Seen, Status], pause_s: Callable[[OwnerKey], float]) -> Kind[Object, Seen, Status]:
    """The kind, with plans that only report what goes on.  Other plans raise ChangeNeededError.

    What is worth no notice, such as one more pod that is ready, is reported after a pause since the last report.
    """

    def decide(thing: Object, seen: Seen, settings: Settings, now: datetime) -> Plan[Status]:
        plan = kind.decide(thing, seen, settings, now)
        if plan.apply or plan.delete or not plan.only_watches:
            raise ChangeNeededError
        if not plan.notices and (left := pause_s(thing.owner.key)) > 0:
            return replace(plan, report=False, look_again=min(left, plan.look_again or left))
        return plan

    return replace(kind, decide=decide)
