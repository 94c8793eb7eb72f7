"""Room for all pods or none: what a ResourceQuota has, what a job needs, and that no half of a job stays."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_operator.jobs.decide import decide
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import JobStatus, Phase, Restarts
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.plan import Plan
from deepseek_operator.objects.quota import amount, in_units, shortage, spread
from support.builders.operator import NOW, SETTINGS, a_job, a_lost_pod, a_pod, a_quota, a_warning, a_worker_job

OVER = a_warning("FailedCreate", "exceeded quota: team")
HALF = Observed(worker_jobs=(a_worker_job(),), pods=(a_pod(0),), warnings=(OVER,))
YOUNG = a_worker_job() | {"metadata": a_worker_job()["metadata"] | {"creationTimestamp": "2026-01-02T03:03:45Z"}}
FULL = a_quota({"pods": "3"}, {"pods": "2"})
GPUS = {"limits": {"nvidia.com/gpu": 8, "memory": "64Gi"}, "requests": {"cpu": "500m"}}


def a_job_of(num_pods: int = 2, resources: Manifest | None = None, **pod: Any) -> Manifest:
    containers = [{"name": "trainer", **({"resources": resources} if resources else {})}]
    return {"spec": {"parallelism": num_pods, "template": {"spec": {"containers": containers, **pod}}}}


def a_limit_range(**defaults: Any) -> Manifest:
    return {"spec": {"limits": [{"type": "Container", **defaults}, {"type": "Pod", "max": {"cpu": "9"}}]}}


@pytest.mark.parametrize(
    ("resources", "hard", "short"),
    [
        pytest.param(None, "requests.cpu", "requests.cpu: 2 needed at once", id="a-request-by-default"),
        pytest.param(None, "limits.cpu", "limits.cpu: 4 needed at once", id="a-limit-by-default"),
        pytest.param({"requests": {"cpu": 3}}, "requests.cpu", "requests.cpu: 6 needed at once", id="an-own-request"),
        pytest.param({"limits": {"cpu": 3}}, "requests.cpu", "requests.cpu: 6 needed at once", id="from-an-own-limit"),
        pytest.param({"limits": {"memory": 1}}, "requests.cpu", "requests.cpu: 2 needed at once", id="the-other-one"),
    ],
)
def test_pods_need_what_a_limit_range_gives_them(resources: Manifest | None, hard: str, short: str) -> None:
    quota = a_quota({hard: "1"}, {hard: "0"})
    given = a_limit_range(default={"cpu": "2"}, defaultRequest={"cpu": "1"})
    found = shortage(a_job_of(2, resources), [quota], [given])
    assert short in str(found)
    own = bool(resources and ("requests" in resources or "cpu" in resources["limits"]))
    assert (shortage(a_job_of(2, resources), [quota]) is not None) is own


@pytest.mark.parametrize(
    ("named", "default", "counts"),
    [("high", None, True), (None, "high", True), (None, "low", False), ("low", "high", False)],
)
def test_a_quota_for_a_priority_class_counts_pods_that_have_it_by_name_or_by_default(
    named: str | None, default: str | None, counts: bool
) -> None:
    scope = {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}
    quota = a_quota({"pods": "1"}, {"pods": "0"}, scopeSelector={"matchExpressions": [scope]})
    job = a_job_of(2, **({"priorityClassName": named} if named else {}))
    assert (shortage(job, [quota], default_priority=default) is not None) is counts


def test_best_effort_pods_are_those_that_no_limit_range_gives_a_request() -> None:
    quota = a_quota({"pods": "1"}, {"pods": "0"}, scopes=["BestEffort"])
    assert shortage(a_job_of(2), [quota]) is not None
    assert shortage(a_job_of(2), [quota], [a_limit_range(defaultRequest={"cpu": "1"})]) is None


@pytest.mark.parametrize(
    ("hard", "used", "resources", "short"),
    [
        ({"pods": "2"}, {"pods": "0"}, None, None),
        ({"pods": "2"}, {"pods": "1"}, None, "pods: 2 needed at once, 1 of 2 free"),
        ({"count/pods": "3"}, {"count/pods": "2"}, None, "count/pods: 2 needed at once, 1 of 3 free"),
        ({"count/jobs.batch": "1"}, {"count/jobs.batch": "0"}, None, None),
        ({"count/jobs.batch": "1"}, {"count/jobs.batch": "1"}, None, "count/jobs.batch: 1 needed at once, 0 of 1"),
        ({"requests.nvidia.com/gpu": "16"}, {"requests.nvidia.com/gpu": "0"}, GPUS, None),
        (
            {"requests.nvidia.com/gpu": "24"},
            {"requests.nvidia.com/gpu": "16"},
            GPUS,
            "requests.nvidia.com/gpu: 16 needed at once, 8 of 24 free: ask for less, raise the ResourceQuota",
        ),
        ({"requests.nvidia.com/gpu": "0"}, {"requests.nvidia.com/gpu": "0"}, None, None),
        ({"cpu": "1"}, {"cpu": "0"}, GPUS, None),
        ({"cpu": "1"}, {"cpu": "1m"}, GPUS, "cpu: 1 needed at once, 0.999 of 1 free"),
        ({"requests.cpu": "1e0"}, {"requests.cpu": "500m"}, GPUS, "requests.cpu: 1 needed at once, 0.5 of 1 free"),
        ({"limits.cpu": "0"}, {"limits.cpu": "0"}, GPUS, None),
        ({"memory": "1Ti"}, {"memory": "900Gi"}, GPUS, "memory: 128Gi needed at once, 124Gi of 1024Gi free"),
        ({"limits.memory": "128Gi"}, {"limits.memory": "1"}, GPUS, "limits.memory: 128Gi needed at once"),
        ({"requests.ephemeral-storage": "0"}, {"requests.ephemeral-storage": "0"}, GPUS, None),
        ({"services": "0", "secrets": "0"}, {"services": "0", "secrets": "0"}, GPUS, None),
        pytest.param({"pods": "0"}, {}, None, None, id="not-counted-yet"),
        pytest.param({"pods": "1"}, {"pods": "4"}, None, "2 needed at once, 0 of 1 free", id="shrunk"),
    ],
)
def test_all_pods_fit_or_the_quota_and_what_is_short_are_named(
    hard: dict[str, str], used: dict[str, str], resources: Manifest | None, short: str | None
) -> None:
    found = shortage(a_job_of(resources=resources), [a_quota(hard, used)])
    assert short in str(found) if short else found is None
    assert found is None or str(found).startswith("ResourceQuota 'team' is short of ")


def test_what_never_fits_is_told_before_what_others_use() -> None:
    quotas = [FULL, a_quota({"count/pods": "1"}, {"count/pods": "0"})]
    assert "count/pods: 2 needed at once, 1 of 1 free, so it never fits" in str(shortage(a_job_of(), quotas))
    assert "never" not in str(shortage(a_job_of(), quotas[:1]))


def scoped(name: str, operator: str = "Exists", *values: str) -> dict[str, Any]:
    expression = {"scopeName": name, "operator": operator, **({"values": list(values)} if values else {})}
    return {"scopeSelector": {"matchExpressions": [expression]}}


@pytest.mark.parametrize(
    ("spec", "priority", "resources", "applies"),
    [
        ({}, None, None, True),
        ({"scopes": ["NotTerminating"]}, None, None, True),
        ({"scopes": ["Terminating"]}, None, None, False),
        ({"scopes": ["NotTerminating", "NotBestEffort"]}, None, None, False),
        ({"scopes": ["BestEffort"]}, None, None, True),
        ({"scopes": ["BestEffort"]}, None, {"limits": {"nvidia.com/gpu": 1}}, True),
        ({"scopes": ["NotBestEffort"]}, None, {"limits": {"cpu": 1}}, True),
        ({"scopes": ["PriorityClass"]}, "prod", None, True),
        (scoped("PriorityClass"), None, None, False),
        (scoped("PriorityClass", "DoesNotExist"), None, None, True),
        (scoped("PriorityClass", "In", "prod", "test"), "prod", None, True),
        (scoped("PriorityClass", "In", "test"), "prod", None, False),
        (scoped("PriorityClass", "NotIn", "test"), None, None, True),
        (scoped("PriorityClass", "NotIn", "prod"), "prod", None, False),
        (scoped("CrossNamespacePodAffinity"), None, None, False),
        (scoped("SomethingNew"), None, None, False),
    ],
)
def test_a_quota_counts_for_pods_of_its_scopes(
    spec: dict[str, Any], priority: str | None, resources: Manifest | None, applies: bool
) -> None:
    pod: dict[str, Any] = {"priorityClassName": priority} if priority else {}
    found = shortage(a_job_of(resources=resources, **pod), [a_quota({"pods": "0"}, {"pods": "0"}, **spec)])
    assert (found is not None) is applies


@pytest.mark.parametrize(
    ("quantity", "number", "text"),
    [
        (4, "4", "4"),
        ("500m", "0.5", "0.5"),
        ("1.5", "1.5", "1.5"),
        ("2e3", "2000", "2000"),
        ("1E", "1e18", "1000000000000000000"),
        ("250u", "0.00025", "0.00025"),
        ("64Gi", "68719476736", "64Gi"),
        ("512Mi", "536870912", "512Mi"),
        ("100k", "100000", "100000"),
        ("0", "0", "0"),
    ],
)
def test_quantities_are_read_as_kubernetes_does(quantity: int | str, number: str, text: str) -> None:
    assert (amount(quantity), in_units(amount(quantity))) == (Decimal(number), text)


QUANTITIES = st.builds("{}{}".format, st.integers(0, 4096), st.sampled_from(["", "m", "k", "Ki", "Mi", "Gi"]))


@given(num_pods=st.integers(1, 64), each=QUANTITIES, hard=QUANTITIES, used=QUANTITIES)
def test_what_fits_leaves_nobody_with_less_than_nothing(num_pods: int, each: str, hard: str, used: str) -> None:
    job = a_job_of(num_pods, {"limits": {"nvidia.com/gpu": each}})
    name = "requests.nvidia.com/gpu"
    fits = shortage(job, [a_quota({name: hard}, {name: used})]) is None
    assert fits is (sum([amount(each)] * num_pods) <= amount(hard) - amount(used))


def test_jobs_that_wait_do_not_try_in_step() -> None:
    times = [spread(30, str(seed)) for seed in range(100)]
    assert 30 <= min(times) < 33
    assert 57 < max(times) < 60


def plan_for(status: JobStatus, observed: Observed, **labels: str) -> Plan:
    return decide(a_job(status=status, labels=labels), observed, SETTINGS, NOW)


def reason(plan: Plan) -> str:
    running = plan.status.condition("Running")
    assert running is not None
    return running.reason


@pytest.mark.parametrize(
    "status",
    [
        JobStatus(),
        JobStatus(phase=Phase.PENDING),
        JobStatus(phase=Phase.RESTARTING, attempt=2, restarts=Restarts(job=1), running_since=NOW),
    ],
    ids=["new", "waiting", "restart"],
)
def test_a_job_without_room_for_all_its_pods_makes_nothing_and_waits(status: JobStatus) -> None:
    plan = plan_for(status, Observed(quotas=(FULL,)))
    assert (plan.apply, plan.delete, plan.status.phase, reason(plan)) == ((), (), Phase.PENDING, "QuotaExceeded")
    assert (plan.status.attempt, plan.status.restarts) == (status.attempt, status.restarts)
    assert plan.status.running_since is None, "waiting is no running time"
    assert plan.look_again is not None
    assert 30 <= plan.look_again < 60
    assert [notice.type for notice in plan.notices] == ["Warning"]
    then = plan_for(plan.status, Observed(quotas=(a_quota({"pods": "3"}, {"pods": "1"}),)))
    assert (then.apply[-1]["kind"], then.status.attempt) == ("Job", status.attempt)


def test_what_an_older_attempt_left_does_not_fill_the_quota_for_ever() -> None:
    jobs = a_quota({"count/jobs.batch": "1"}, {"count/jobs.batch": "1"})
    failed = a_worker_job(conditions=("Failed",))
    plan = plan_for(JobStatus(phase=Phase.RESTARTING, attempt=2), Observed(worker_jobs=(failed,), quotas=(jobs,)))
    assert (reason(plan), [ref.name for ref in plan.delete]) == ("QuotaExceeded", ["demo-a1"])


def test_half_of_a_job_of_a_queue_is_left_to_the_queue() -> None:
    status = JobStatus(phase=Phase.STARTING, attempt=1)
    plan = plan_for(status, HALF, **{"kueue.x-k8s.io/queue-name": "team-a"})
    assert (plan.status.phase, plan.delete) == (Phase.STARTING, ())
    assert plan_for(status, HALF).status.phase is Phase.PENDING


def test_kueue_admits_a_job_of_a_queue_without_us() -> None:
    plan = plan_for(JobStatus(), Observed(quotas=(FULL,)), **{"kueue.x-k8s.io/queue-name": "team-a"})
    assert plan.apply[-1]["kind"] == "Job"


@pytest.mark.parametrize("status", [JobStatus(phase=Phase.STARTING, attempt=1), JobStatus(phase=Phase.PENDING)])
def test_half_of_a_job_is_given_back_once_the_phase_has_stepped_back(status: JobStatus) -> None:
    first = plan_for(status, HALF)
    assert (first.status.phase, reason(first)) == (Phase.PENDING, "QuotaExceeded")
    assert (first.delete, first.look_again) == ((), 0.0)
    then = plan_for(first.status, HALF)
    assert [ref.name for ref in then.delete] == ["demo-a1"]
    assert then.status == first.status
    assert then.notices == ()
    leaving = plan_for(then.status, Observed(worker_jobs=(), pods=HALF.pods))
    assert (reason(leaving), leaving.apply) == ("PodsLeaving", ())
    again = plan_for(leaving.status, Observed())
    assert again.apply[-1]["metadata"]["name"] == "demo-a1"
    assert (again.status.attempt, again.status.restarts) == (1, Restarts())


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        pytest.param(Observed(worker_jobs=(YOUNG,), pods=HALF.pods, warnings=(OVER,)), "QuotaExceeded", id="young"),
        pytest.param(
            Observed(worker_jobs=(a_worker_job(),), pods=(), warnings=(OVER,)), "QuotaExceeded", id="holds-nothing"
        ),
        pytest.param(Observed(worker_jobs=(a_worker_job(),), pods=HALF.pods), "PodsStarting", id="another-reason"),
        pytest.param(
            Observed(worker_jobs=(a_worker_job(),), pods=(a_pod(0), a_pod(1, "Pending")), warnings=(OVER,)),
            "PodsStarting",
            id="complete",
        ),
        pytest.param(
            Observed(
                worker_jobs=(a_worker_job(),), pods=(a_pod(0, ready=False), a_pod(1, "Succeeded")), warnings=(OVER,)
            ),
            "QuotaExceeded",
            id="one-is-done",
        ),
        pytest.param(
            Observed(worker_jobs=(a_worker_job(),), pods=(a_lost_pod(0),), warnings=(OVER,)),
            "NodeLost",
            id="machine-lost",
        ),
        pytest.param(
            Observed(worker_jobs=(a_worker_job(conditions=("FailureTarget",)),), pods=HALF.pods, warnings=(OVER,)),
            "PodsStopping",
            id="failing",
        ),
        pytest.param(
            Observed(worker_jobs=(a_worker_job(suspend=True),), pods=HALF.pods, warnings=(OVER,)),
            "WaitingForQueue",
            id="queued",
        ),
    ],
)
def test_nothing_else_is_given_back(observed: Observed, expected: str) -> None:
    status = JobStatus(phase=Phase.STARTING, attempt=1)
    plan = plan_for(status, observed)
    assert (reason(plan), plan.delete, plan.status.phase is Phase.PENDING) == (expected, (), False)
