"""Where pods may run, as the affinity of a pod says it.  The functions are pure."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, Final

from deepseek_operator.objects.observed import Manifest

MACHINE: Final = "kubernetes.io/hostname"
REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"


def excluding(affinity: Manifest | None, nodes: Sequence[str]) -> Manifest | None:
    """The affinity of a pod, with the demand to run on none of `nodes`.  None: the pod may run anywhere.

    The terms of a node affinity are alternatives, so each of them gets the demand.  An empty term selects no node.
    """
    if not nodes:
        return affinity
    others = affinity or {}
    by_node = others.get("nodeAffinity", {})
    away = {"key": MACHINE, "operator": "NotIn", "values": sorted(nodes)}
    terms = by_node.get(REQUIRED, {}).get("nodeSelectorTerms", ())
    demanded = [term | {"matchExpressions": [*term.get("matchExpressions", ()), away]} for term in terms if term]
    if not terms:
        demanded = [{"matchExpressions": [away]}]
    return others | {"nodeAffinity": by_node | {REQUIRED: {"nodeSelectorTerms": demanded}}}


def joined(*affinities: Manifest) -> Manifest:
    """An affinity that asks for everything that each of `affinities` asks for."""
    made: Manifest = {}
    if nodes := _joined_nodes([each["nodeAffinity"] for each in affinities if "nodeAffinity" in each]):
        made["nodeAffinity"] = nodes
    for kind in ("podAffinity", "podAntiAffinity"):
        given = [each[kind] for each in affinities if kind in each]
        lists = {when: _chained(given, when) for when in (REQUIRED, _PREFERRED)}
        if present := {when: terms for when, terms in lists.items() if terms}:
            made[kind] = present
    return made


def _joined_nodes(given: list[Manifest]) -> Manifest:
    """Of required terms one must hold, so that those of several affinities are multiplied out."""
    made: Manifest = {}
    if choices := [each[REQUIRED]["nodeSelectorTerms"] for each in given if REQUIRED in each]:
        made[REQUIRED] = {"nodeSelectorTerms": [_merged(terms) for terms in product(*choices)]}
    if preferred := _chained(given, _PREFERRED):
        made[_PREFERRED] = preferred
    return made


def _merged(terms: Iterable[Manifest]) -> Manifest:
    """One term that holds where all of `terms` hold."""
    made: Manifest = {}
    for term in terms:
        for field, requirements in term.items():
            made[field] = [*made.get(field, ()), *requirements]
    return made


def _chained(given: Iterable[Manifest], field: str) -> list[Any]:
    return [item for each in given for item in each.get(field, ())]
