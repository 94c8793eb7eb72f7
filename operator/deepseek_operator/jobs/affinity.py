"""Where pods may run, as the affinity of a pod says it.  The functions are pure."""

from collections.abc import Sequence
from typing import Final

from deepseek_operator.objects.observed import Manifest

HOSTNAME: Final = "kubernetes.io/hostname"
_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"


def excluding(affinity: Manifest | None, nodes: Sequence[str]) -> Manifest | None:
    """The affinity of a pod, with the demand to run on none of `nodes`.  None: the pod may run anywhere.

    The terms of a node affinity are alternatives, so each of them gets the demand.  An empty term selects no node.
    """
    if not nodes:
        return affinity
    others = affinity or {}
    by_node = others.get("nodeAffinity", {})
    away = {"key": HOSTNAME, "operator": "NotIn", "values": sorted(nodes)}
    terms = by_node.get(_REQUIRED, {}).get("nodeSelectorTerms", ())
    demanded = [term | {"matchExpressions": [*term.get("matchExpressions", ()), away]} for term in terms if term]
    if not terms:
        demanded = [{"matchExpressions": [away]}]
    return others | {"nodeAffinity": by_node | {_REQUIRED: {"nodeSelectorTerms": demanded}}}
