"""Whose an object is: made for the owner of a pass, left by an earlier owner of that name, or somebody else's.

Labels alone do not make an object ours, because anybody can set them.  Only what outlives its owner on purpose has no
controller, and is known by its labels.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Final

from deepseek_operator.api.names import API_VERSION, OPERATOR
from deepseek_operator.objects.kind import AnyKind
from deepseek_operator.objects.observed import Manifest
from deepseek_trainer.contract.foreign import shown

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MAX_NAMED: Final = 4  # labels or managers in a message


class Standing(Enum):
    OURS = auto()
    LEAVING = auto()  # it is being deleted, or belongs to an earlier owner of this name, which is being deleted
    FOREIGN = auto()


def controller_of(manifest: Mapping[str, Any]) -> Manifest:
    """The reference to the object's controller; empty if it has none."""
    references = manifest["metadata"].get("ownerReferences", ())
    return next((reference for reference in references if reference.get("controller")), {})


def standing(found: Manifest, wanted: Manifest, kind: AnyKind) -> Standing:
    """How `found`, an object of a cluster, stands to the owner for which `wanted` is made under the same name."""
    ours, controller = wanted["metadata"]["labels"], controller_of(found)
    if controller:
        is_ours = controller.get("uid") == ours[kind.labels.uid]
    else:
        is_ours = wanted["kind"] in kind.outlive and _is_labelled_as(found, wanted, kind)
    if is_ours:
        return Standing.LEAVING if "deletionTimestamp" in found["metadata"] else Standing.OURS
    namesake = (API_VERSION, kind.name, ours[kind.labels.name])
    is_namesakes = (controller.get("apiVersion"), controller.get("kind"), controller.get("name")) == namesake
    return Standing.LEAVING if is_namesakes else Standing.FOREIGN


def whose(found: Manifest) -> str:
    """Who has `found`, for people: its controller, or its labels and who manages its fields.  It is bounded."""
    meta = found["metadata"]
    if owner := controller_of(found) or next(iter(meta.get("ownerReferences", ())), {}):
        return f"it belongs to {shown(owner.get('kind'))} {shown(owner.get('name'))}"
    labels = _named(f"{key}={value}" for key, value in sorted(meta.get("labels", {}).items()))
    managers = _named({field.get("manager", ""): None for field in meta.get("managedFields", ())})
    return f"it has no owner, {f'labels {labels}' if labels else 'no labels'}" + (
        f", and was written by {managers}" if managers else ""
    )


def _is_labelled_as(found: Manifest, wanted: Manifest, kind: AnyKind) -> bool:
    labels, of_name = found["metadata"].get("labels", {}), kind.labels.name
    return (labels.get(MANAGED_BY), labels.get(of_name)) == (OPERATOR, wanted["metadata"]["labels"][of_name])


def _named(words: Any) -> str:
    every = [shown(word) for word in words]
    return ", ".join(every[:MAX_NAMED]) + (", ..." if len(every) > MAX_NAMED else "")
