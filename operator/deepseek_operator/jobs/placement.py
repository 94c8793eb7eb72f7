"""Where the pods of an attempt may run, and how they spread over machines."""

from deepseek_operator.jobs import labels
from deepseek_operator.jobs.affinity import MACHINE, REQUIRED, excluding, joined
from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.spec import AccessMode
from deepseek_operator.objects.observed import Manifest
from deepseek_trainer.contract.rules import Model


def placement(blueprint: Blueprint) -> Manifest:
    """The fields of the pods' spec that the scheduler reads."""
    fields = {
        "priorityClassName": blueprint.spec.scheduling.priority_class_name,
        "affinity": excluding(joined(*_affinities(blueprint)), blueprint.excluded_nodes),
        "topologySpreadConstraints": _spread(blueprint),
        **(_of_profile(blueprint.profile) if blueprint.profile else {}),
    }
    return {name: value for name, value in fields.items() if value}


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
    return {"podAffinity": {REQUIRED: [term]}}


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
