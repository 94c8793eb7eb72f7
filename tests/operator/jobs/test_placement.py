"""Where pods may run: what a profile asks for, spread or together, and several affinities joined to one."""

from itertools import product
from typing import Any

import pytest

from deepseek_operator.jobs import labels
from deepseek_operator.jobs.affinity import joined
from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.placement import placement
from deepseek_operator.objects.observed import Manifest
from support.builders.operator import OWNER, SETTINGS, a_profile, a_spec, merged

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
OWN = {"matchLabels": {labels.JOB_UID: OWNER.uid, labels.ATTEMPT: "1"}}
ONE_NODE = {"trainer": {"numNodes": 1}}
ON_ONE_MACHINE = {"checkpoint": {"volume": {"accessMode": "ReadWriteOnce"}}}
RACKS = {"topologySpread": [{"topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 2}]}


def placed(job: dict[str, Any], **profile: Any) -> Manifest:
    picked = merged({"trainer": {"image": None, "profile": "h100"}}, job)
    return placement(Blueprint(a_spec(**picked), OWNER, a_profile(**profile), SETTINGS, 1, {}))


def requirement(key: str, *values: str) -> Manifest:
    return {"key": key, "operator": "In", "values": list(values)}


def required(*terms: list[Manifest]) -> Manifest:
    return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": term} for term in terms]}}}


def test_pods_spread_over_machines_unless_there_is_one_or_the_profile_says_how() -> None:
    (default,) = placed({})["topologySpreadConstraints"]
    assert (default["topologyKey"], default["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert placed({}, **RACKS)["topologySpreadConstraints"] == [
        {"topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 2, "labelSelector": OWN}
    ]
    assert placed(ONE_NODE, **RACKS) == {}


@pytest.mark.parametrize("profile", [{}, RACKS])
def test_pods_whose_volume_is_for_one_machine_are_kept_on_one(profile: dict[str, Any]) -> None:
    """A spread over racks would leave the second pod waiting for ever."""
    fields = placed(ON_ONE_MACHINE, **profile)
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": OWN}
    assert fields == {"affinity": {"podAffinity": {REQUIRED: [term]}}}


def test_a_volume_for_one_machine_asks_nothing_of_a_single_pod() -> None:
    assert placed(merged(ON_ONE_MACHINE, ONE_NODE)) == {}


def test_a_profile_names_scheduler_runtime_and_machines() -> None:
    affinity = required([requirement("gpu", "h100")])
    fields = placed(ONE_NODE, schedulerName="packer", runtimeClassName="nvidia", affinity=affinity)
    assert fields == {"schedulerName": "packer", "runtimeClassName": "nvidia", "affinity": affinity}


def test_joined_terms_hold_exactly_where_all_given_affinities_hold() -> None:
    first = required([requirement("gpu", "a")], [requirement("gpu", "b"), requirement("zone", "x")])
    second = required([requirement("disk", "ssd")], [requirement("zone", "x", "y")])
    both = joined(first, second)
    for gpu, zone, disk in product("abc", "xyz", ("ssd", "hdd")):
        machine = {"gpu": gpu, "zone": zone, "disk": disk}
        assert fits(both, machine) == (fits(first, machine) and fits(second, machine)), machine


def fits(affinity: Manifest, machine: dict[str, str]) -> bool:
    """As the scheduler decides: one of the terms, with all of its requirements."""
    terms = affinity["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    return any(all(machine[each["key"]] in each["values"] for each in term["matchExpressions"]) for term in terms)


def test_preferences_and_pods_of_all_affinities_count() -> None:
    soft = {"weight": 1, "preference": {"matchExpressions": [requirement("gpu", "a")]}}
    near, far = ({"topologyKey": key, "labelSelector": OWN} for key in ("rack", "zone"))
    made = joined(
        {"nodeAffinity": {PREFERRED: [soft]}, "podAffinity": {REQUIRED: [near]}},
        {"podAffinity": {REQUIRED: [far]}},
        {},
    )
    assert made == {"nodeAffinity": {PREFERRED: [soft]}, "podAffinity": {REQUIRED: [near, far]}}
    assert joined({}, {}) == {}
