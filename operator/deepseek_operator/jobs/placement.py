"""Where the pods of an attempt may run, and how they spread over machines."""

from collections.abc import Iterable
from itertools import product
from typing import Any, Final

from deepseek_operator.jobs import labels
from deepseek_operator.jobs.affinity import excluding
from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.spec import AccessMode
from deepseek_operator.objects.observed import Manifest
from deepseek_trainer.contract.rules import Model

MACHINE: Final = "kubernetes.io/hostname"
_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"


def placement(blueprint: Blueprint) -> Manifest:
    """The fields of the pods' spec that the scheduler reads."""
    fields = {
        "priorityClassName": blueprint.spec.scheduling.priority_class_name,
        "affinity": excluding(joined(*_affinities(blueprint)), blueprint.excluded_nodes),
        "topologySpreadConstraints": _spread(blueprint),
        **(_of_profile(blueprint.profile) if blueprint.profile else {}),
    }
    return {name: value for name, value in fields.items() if value}


def joined(*affinities: Manifest) -> Manifest:
    """An affinity that asks for everything that each of `affinities` asks for."""
    made: Manifest = {}
    if nodes := _joined_nodes([each["nodeAffinity"] for each in affinities if "nodeAffinity" in each]):
        made["nodeAffinity"] = nodes
    for kind in ("podAffinity", "podAntiAffinity"):
        given = [each[kind] for each in affinities if kind in each]
        lists = {when: _chained(given, when) for when in (_REQUIRED, _PREFERRED)}
        if present := {when: terms for when, terms in lists.items() if terms}:
            made[kind] = present
    return made


def _joined_nodes(given: list[Manifest]) -> Manifest:
    """Of required terms one must hold, so that those of several affinities are multiplied out."""
    made: Manifest = {}
    if choices := [each[_REQUIRED]["nodeSelectorTerms"] for each in given if _REQUIRED in each]:
        made[_REQUIRED] = {"nodeSelectorTerms": [_merged(terms) for terms in product(*choices)]}
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


def _affinities(blueprint: Blueprint) -> list[Manifest]:
    profile = blueprint.profile
    given = [_dumped(profile.affinity)] if profile and profile.affinity else []
    return [*given, _on_one_machine(blueprint)] if _shares_a_machine(blueprint) else given


def _shares_a_machine(blueprint: Blueprint) -> bool:
    """Whether the volume can only be mounted on one machine, and there are pods to keep together."""
    nodes = blueprint.spec.trainer.num_nodes
    return nodes > 1 and blueprint.spec.checkpoint.volume.mode(nodes) is AccessMode.READ_WRITE_ONCE


def _on_one_machine(blueprint: Blueprint) -> Manifest:
    term = {"topologyKey": MACHINE, "labelSelector": _own_pods(blueprint)}
    return {"podAffinity": {_REQUIRED: [term]}}


def _spread(blueprint: Blueprint) -> list[Manifest]:
    """Spread the pods over machines if possible.  numProcPerNode is the way to get several ranks on one machine."""
    if blueprint.spec.trainer.num_nodes == 1 or _shares_a_machine(blueprint):
        return []
    profile = blueprint.profile
    wanted = [_dumped(each) for each in profile.topology_spread] if profile and profile.topology_spread else None
    default = {"maxSkew": 1, "topologyKey": MACHINE, "whenUnsatisfiable": "ScheduleAnyway"}
    return [each | {"labelSelector": _own_pods(blueprint)} for each in wanted or [default]]


def _own_pods(blueprint: Blueprint) -> Manifest:
    return {"matchLabels": {labels.JOB_UID: blueprint.owner.uid, labels.ATTEMPT: str(blueprint.attempt)}}


def _of_profile(profile: ProfileSpec) -> Manifest:
    return {
        "schedulerName": profile.scheduler_name,
        "runtimeClassName": profile.runtime_class_name,
        "nodeSelector": dict(sorted((profile.node_selector or {}).items())),
        "tolerations": [_dumped(toleration) for toleration in profile.tolerations],
    }


def _dumped(model: Model) -> Manifest:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
