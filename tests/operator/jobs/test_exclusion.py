"""Nodes that the next attempts keep away from."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_operator.jobs.affinity import excluding
from deepseek_operator.jobs.decide import decide
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import AttemptStatus, ExcludedNode, JobStatus, Phase, Restarts
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.plan import Plan
from support.builders.operator import NOW, SETTINGS, a_job, a_pod, a_worker_job, terminated

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
HOUR = 3600


def plan_for(status: JobStatus, observed: Observed, at: float = 0) -> Plan[JobStatus]:
    spec = {"trainer": {"numNodes": 1}}
    return decide(a_job(spec, status), observed, SETTINGS, NOW + timedelta(seconds=at))


def rejected(attempt: int = 1, reason: str = "UnexpectedAdmissionError", machine: str = "gpu-7") -> Observed:
    pod = a_pod(0, "Failed", attempt=attempt, machine=machine, reason=reason, message="no healthy devices present")
    return Observed(worker_jobs=(a_worker_job(attempt, conditions=("Failed",)),), pods=(pod,), isolated=True)


def crashed(attempt: int, machine: str = "gpu-7") -> Observed:
    pod = a_pod(0, "Failed", attempt=attempt, machine=machine, **terminated(1))
    return Observed(worker_jobs=(a_worker_job(attempt, conditions=("Failed",)),), pods=(pod,), isolated=True)


def excluded(status: JobStatus) -> list[str]:
    return [node.name for node in status.excluded_nodes]


def avoided(plan: Plan[JobStatus]) -> list[str]:
    """The nodes that the pods of the worker job in the plan keep away from."""
    affinity = plan.apply[-1]["spec"]["template"]["spec"].get("affinity")
    if affinity is None:
        return []
    (term,) = affinity["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    (away,) = term["matchExpressions"]
    assert (away["key"], away["operator"]) == ("kubernetes.io/hostname", "NotIn")
    return list(away["values"])


@pytest.mark.parametrize("reason", ["UnexpectedAdmissionError", "OutOfcpu", "NodeAffinity", "TopologyAffinityError"])
def test_the_attempt_after_a_rejection_goes_to_another_node_and_costs_no_restart(reason: str) -> None:
    status = plan_for(JobStatus(phase=Phase.STARTING, attempt=1), rejected(reason=reason)).status
    assert [(node.name, node.reason) for node in status.excluded_nodes] == [("gpu-7-0", reason)]
    assert (status.restarts, status.not_placed, status.phase) == (Restarts(), 1, Phase.RESTARTING)
    assert "was rejected by gpu-7-0" in status.message
    assert status.next_attempt_time == NOW + timedelta(seconds=10)
    assert avoided(plan_for(status, rejected(), at=10)) == ["gpu-7-0"]


def test_rejections_never_fail_a_job_and_come_ever_more_rarely() -> None:
    status, at = JobStatus(phase=Phase.STARTING, attempt=1), 0.0
    for attempt in range(1, 20):
        status = plan_for(status, rejected(attempt, machine=f"gpu-{attempt}"), at).status
        assert status.phase is Phase.RESTARTING
        assert status.next_attempt_time is not None
        at = (status.next_attempt_time - NOW).total_seconds()
    assert at > 13 * 600
    assert len(status.excluded_nodes) <= 8


def test_a_node_on_which_two_attempts_in_a_row_failed_is_left_out() -> None:
    first = plan_for(JobStatus(phase=Phase.RUNNING, attempt=1), crashed(1)).status
    assert excluded(first) == [], "once may be chance"
    second = plan_for(first.model_copy(update={"phase": Phase.RUNNING}), crashed(2), at=30).status
    assert excluded(second) == ["gpu-7-0"]
    assert second.restarts.job == 2
    elsewhere = plan_for(first.model_copy(update={"phase": Phase.RUNNING}), crashed(2, machine="gpu-8"), at=30).status
    assert excluded(elsewhere) == []


def test_a_node_may_be_used_again_after_an_hour() -> None:
    status = plan_for(JobStatus(phase=Phase.STARTING, attempt=1), rejected()).status
    assert avoided(plan_for(status, rejected(), at=HOUR - 1)) == ["gpu-7-0"]
    later = plan_for(status, rejected(), at=HOUR)
    assert (avoided(later), excluded(later.status)) == ([], [])


def test_a_job_that_finds_no_other_node_tries_the_excluded_ones_again() -> None:
    away = (ExcludedNode(name="gpu-7", reason="OutOfcpu", until=NOW + timedelta(hours=1)),)
    status = JobStatus(phase=Phase.STARTING, attempt=2, excluded_nodes=away)
    waiting = Observed(
        worker_jobs=(a_worker_job(2),), pods=(a_pod(0, "Pending", attempt=2, machine=None),), isolated=True
    )
    assert plan_for(status, waiting, at=299).status.phase is Phase.STARTING
    given_up = plan_for(status, waiting, at=700)
    assert (given_up.status.phase, excluded(given_up.status)) == (Phase.PENDING, [])
    assert [ref.name for ref in plan_for(given_up.status, waiting, at=701).delete] == ["demo-a2"]
    alone = plan_for(status.model_copy(update={"excluded_nodes": ()}), waiting, at=700).status
    assert alone.phase is Phase.STARTING, "without excluded nodes, nothing is gained by another try"


TERMS = st.lists(
    st.fixed_dictionaries({"matchExpressions": st.just([{"key": "pool", "operator": "In", "values": ["gpu"]}])}),
    min_size=1,
    max_size=3,
)
NODES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True)


@given(TERMS, NODES)
def test_each_alternative_of_an_affinity_gets_the_demand_and_keeps_its_own(
    terms: list[Manifest], nodes: list[str]
) -> None:
    others: dict[str, Any] = {
        "podAffinity": {"x": 1},
        "nodeAffinity": {"preferred": [1], REQUIRED: {"nodeSelectorTerms": terms}},
    }
    found = excluding(others, nodes)
    assert found is not None
    assert (found["podAffinity"], found["nodeAffinity"]["preferred"]) == ({"x": 1}, [1])
    for before, after in zip(terms, found["nodeAffinity"][REQUIRED]["nodeSelectorTerms"], strict=True):
        *own, away = after["matchExpressions"]
        assert own == before["matchExpressions"]
        assert away == {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": sorted(nodes)}


def test_an_affinity_stays_as_it_is_without_nodes_to_avoid() -> None:
    assert excluding(None, ()) is None
    assert excluding({"podAffinity": {}}, ()) == {"podAffinity": {}}


def test_a_term_that_selects_no_node_still_selects_none() -> None:
    found = excluding({"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{}, {"matchFields": [1]}]}}}, ["a"])
    assert found is not None
    (term,) = found["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert term["matchFields"] == [1]


def test_the_record_survives_the_api_server() -> None:
    status = plan_for(JobStatus(phase=Phase.STARTING, attempt=1), rejected()).status
    again = JobStatus.model_validate(status.manifest())
    assert (again.excluded_nodes, again.attempts) == (status.excluded_nodes, status.attempts)
    assert isinstance(again.attempts[0], AttemptStatus)
