"""What a look at a training job finds in a cluster, over real sockets, and what it costs."""

from dataclasses import replace
from datetime import timedelta

import pytest

from deepseek_operator.controller.cluster import KubernetesCluster
from deepseek_operator.jobs import labels
from deepseek_operator.jobs.look import Live
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.objects.observed import Manifest, OwnerKey, Sighting, WarningEvent
from deepseek_trainer.contract.progress import Progress
from support.builders.operator import NOW, OWNER, a_pod, a_quota, a_training_job, a_warning, a_worker_job
from support.fakes.api_server import FakeApi

QUOTAS = "/api/v1/namespaces/ml/resourcequotas"


def lists(fake: FakeApi, jobs: list[Manifest], pods: list[Manifest], events: tuple[Manifest, ...] = ()) -> None:
    fake.answers["GET", "/apis/batch/v1/namespaces/ml/jobs"] = 200, {"items": jobs}
    fake.answers["GET", "/api/v1/namespaces/ml/pods"] = 200, {"items": pods}
    fake.answers["GET", "/api/v1/namespaces/ml/events"] = 200, {"items": list(events)}
    fake.answers["GET", QUOTAS] = 200, {"items": []}


async def test_the_first_look_at_a_job_that_was_created_just_now_asks_for_quotas_alone(
    world: Live, cluster: KubernetesCluster, fake: FakeApi
) -> None:
    key = OwnerKey("ml", "demo")
    cluster.saw(Sighting(key, "7", is_owner=True, owner=a_training_job(), is_new=True))
    await cluster.fetch(key)
    lists(fake, [a_worker_job()], [a_pod()])
    assert await world.observe(OWNER, 1) == Observed(isolated=None)
    assert [where for _, where, *_ in fake.asked] == [QUOTAS]


async def test_the_policy_of_a_job_without_workers_is_not_looked_at(world: Live, fake: FakeApi) -> None:
    lists(fake, [], [])
    assert (await world.observe(OWNER, 1)).isolated is None


async def test_what_a_deleted_namesake_left_is_not_the_jobs_own_but_seen(world: Live, fake: FakeApi) -> None:
    theirs = (a_worker_job(), a_pod(0), a_pod(1, "Failed"))
    for manifest in theirs:
        manifest["metadata"]["labels"][labels.JOB_UID] = "a-namesake"
    lists(fake, [theirs[0]], [*theirs[1:], a_pod(0, attempt=2)])
    observed = await world.observe(OWNER, 2)
    assert observed.leftovers == ("Job demo-a1", "Pod demo-a1-0-xxxxx")
    assert (observed.worker_jobs, [labels.attempt_of(pod) for pod in observed.pods]) == ((), [2])


async def test_the_world_is_listed_by_the_name_of_the_job(world: Live, fake: FakeApi) -> None:
    job, pod = a_worker_job(), a_pod()
    del job["kind"], job["apiVersion"], pod["kind"], pod["apiVersion"]  # as lists give them
    lists(fake, [job], [pod])
    policy = a_policy(OWNER.uid)
    fake.answers["GET", "/apis/networking.k8s.io/v1/namespaces/ml/networkpolicies/dstj-demo"] = 200, policy
    observed = await world.observe(OWNER, 1)
    assert [(m["apiVersion"], m["kind"]) for m in (*observed.worker_jobs, *observed.pods)] == [
        ("batch/v1", "Job"),
        ("v1", "Pod"),
    ]
    assert observed.isolated
    selectors = {query["labelSelector"] for _, where, query, _, _ in fake.asked if where.endswith(("jobs", "pods"))}
    assert selectors == {f"{labels.JOB_NAME}={OWNER.name}"}


def a_policy(controller_uid: str, **selector: str) -> Manifest:
    """A policy of the job's pods, or of those that `selector` names."""
    meta = {"ownerReferences": [{"uid": controller_uid, "controller": True}]}
    return {"metadata": meta, "spec": {"podSelector": {"matchLabels": selector or {labels.JOB_UID: OWNER.uid}}}}


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(a_policy(OWNER.uid, app="web"), id="other-pods"),
        pytest.param(a_policy("somebody"), id="somebody-elses"),
        pytest.param(a_policy("somebody") | {"metadata": {}}, id="nobodys"),
    ],
)
async def test_a_policy_of_other_pods_or_of_somebody_else_does_not_count(
    world: Live, fake: FakeApi, policy: Manifest
) -> None:
    lists(fake, [a_worker_job()], [a_pod()])
    where = "/apis/networking.k8s.io/v1/namespaces/ml/networkpolicies/dstj-demo"
    fake.answers["GET", where] = 200, policy
    assert (await world.observe(OWNER, 1)).isolated is False


async def test_progress_is_read_from_node_0_of_the_newest_attempt(world: Live, fake: FakeApi) -> None:
    pods = [a_pod(0, podIP="127.0.0.9"), a_pod(1, attempt=2, podIP="127.0.0.9"), a_pod(0, attempt=2, podIP="127.0.0.1")]
    lists(fake, [a_worker_job(1), a_worker_job(2)], pods)
    fake.answers["GET", "/progress"] = 200, {"step": 7}
    assert (await world.observe(OWNER, 1)).progress == Progress(step=7)


async def test_warnings_are_read_about_what_has_not_started_in_time(world: Live, fake: FakeApi) -> None:
    mount = {"reason": "FailedMount", "message": "no secret", "lastTimestamp": "2026-01-02T03:00:00Z"}
    quota = {"reason": "FailedCreate", "message": "exceeded quota", "lastTimestamp": "2026-01-02T03:01:00Z"}
    lists(fake, [a_worker_job()], [a_pod(0, "Pending")], (mount, quota))
    found = (await world.observe(OWNER, 1)).warnings
    assert found[0] == WarningEvent("Pod", "demo-a1-0-xxxxx", "FailedCreate", "exceeded quota")
    assert {warning.kind for warning in found} == {"Pod", "Job"}


async def test_warnings_tell_why_half_of_the_pods_were_not_made(world: Live, fake: FakeApi) -> None:
    quota = {"reason": "FailedCreate", "message": "exceeded quota", "lastTimestamp": "2026-01-02T03:01:00Z"}
    lists(fake, [a_worker_job(active=1)], [a_pod(0)], (quota,))
    assert (await world.observe(OWNER, 1)).warnings == (a_warning("FailedCreate", "exceeded quota"),)


@pytest.mark.parametrize(
    ("job", "pods"),
    [
        pytest.param(a_worker_job(conditions=("Complete",)), [], id="over"),
        pytest.param(a_worker_job(active=2), [a_pod(0), a_pod(1)], id="running"),
        pytest.param(a_worker_job(active=2), [a_pod(i, "Pending", machine=None) for i in (0, 1)], id="no-machine"),
    ],
)
async def test_warnings_are_not_read_without_need(
    world: Live, fake: FakeApi, job: Manifest, pods: list[Manifest]
) -> None:
    lists(fake, [job], pods, ({"reason": "FailedMount"},))
    assert (await world.observe(OWNER, 1)).warnings == ()


async def test_a_young_worker_job_may_still_be_without_pods(world: Live, fake: FakeApi) -> None:
    lists(fake, [a_worker_job()], [], ({"reason": "FailedCreate"},))
    young = replace(world, now=NOW - timedelta(minutes=4))
    assert (await young.observe(OWNER, 1)).warnings == ()


GOING = a_worker_job()
GOING["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:00Z"


@pytest.mark.parametrize(
    ("jobs", "attempt", "looks"),
    [
        pytest.param([], 0, 1, id="new"),
        pytest.param([a_worker_job(1)], 2, 1, id="restart"),
        pytest.param([GOING], 1, 1, id="given-back"),
        pytest.param([a_worker_job(1)], 1, 0, id="made"),
        pytest.param([a_worker_job(1)], 0, 0, id="made-and-not-counted-yet"),
    ],
)
async def test_quotas_are_listed_once_and_only_while_a_worker_job_is_to_be_made(
    world: Live, fake: FakeApi, jobs: list[Manifest], attempt: int, looks: int
) -> None:
    quota = a_quota({"pods": "2"}, {"pods": "0"})
    lists(fake, jobs, [])
    fake.answers["GET", QUOTAS] = 200, {"items": [quota]}
    found = (await world.observe(OWNER, attempt)).quotas
    assert [each["status"] for each in found] == [quota["status"]] * looks
    assert [where for _, where, *_ in fake.asked].count(QUOTAS) == looks


LIMITS, CLASSES = "/api/v1/namespaces/ml/limitranges", "/apis/scheduling.k8s.io/v1/priorityclasses"
SCOPE = {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Exists"}]}}


@pytest.mark.parametrize(
    ("quotas", "asked"),
    [
        pytest.param([], [], id="no-quota"),
        pytest.param([a_quota({"pods": "2"}, {"pods": "0"})], [LIMITS], id="quota"),
        pytest.param([a_quota({"pods": "2"}, {"pods": "0"}, **SCOPE)], [LIMITS, CLASSES], id="quota-for-priorities"),
    ],
)
async def test_defaults_of_pods_are_asked_for_only_where_a_quota_counts_them(
    world: Live, fake: FakeApi, quotas: list[Manifest], asked: list[str]
) -> None:
    lists(fake, [], [])
    fake.answers["GET", QUOTAS] = 200, {"items": quotas}
    fake.answers["GET", LIMITS] = 200, {"items": [{"metadata": {"name": "d"}, "spec": {"limits": []}}]}
    named = [{"metadata": {"name": "low"}}, {"metadata": {"name": "usual"}, "globalDefault": True}]
    fake.answers["GET", CLASSES] = 200, {"items": named}
    observed = await world.observe(OWNER, 0)
    assert [where for _, where, *_ in fake.asked if where in (LIMITS, CLASSES)] == asked
    assert observed.default_priority == ("usual" if CLASSES in asked else None)
    assert len(observed.limit_ranges) == len(asked[:1])


async def test_a_role_without_the_defaults_costs_no_more_than_the_look_at_them(world: Live, fake: FakeApi) -> None:
    lists(fake, [], [])
    fake.answers["GET", QUOTAS] = 200, {"items": [a_quota({"pods": "2"}, {"pods": "0"}, **SCOPE)]}
    for where in (LIMITS, CLASSES):
        fake.answers["GET", where] = 403, {"message": "forbidden"}
    observed = await world.observe(OWNER, 0)
    assert (observed.limit_ranges, observed.default_priority, len(observed.quotas)) == ((), None, 1)


def unscheduled(message: str) -> Manifest:
    told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    pod = a_pod(0, "Pending", machine=None, conditions=(told,))
    pod["spec"]["volumes"] = [{"name": "work", "persistentVolumeClaim": {"claimName": "dstj-demo"}}, {"name": "tmp"}]
    return pod


async def test_events_about_claims_are_read_while_pods_wait_for_one(world: Live, fake: FakeApi) -> None:
    def event(name: str) -> Manifest:
        about = {"kind": "PersistentVolumeClaim", "name": name}
        return {"reason": "ProvisioningFailed", "message": "no class", "involvedObject": about}

    pods = [unscheduled("pod has unbound immediate PersistentVolumeClaims")]
    lists(fake, [a_worker_job(active=1)], [*pods, a_pod(1)], (event("dstj-other"), event("dstj-demo")))
    found = (await world.observe(OWNER, 1)).warnings
    assert found == (WarningEvent("PersistentVolumeClaim", "dstj-demo", "ProvisioningFailed", "no class"),)
    assert [query for _, where, query, *_ in fake.asked if where.endswith("/events")] == [
        {"fieldSelector": "involvedObject.kind=PersistentVolumeClaim"}
    ]


async def test_events_about_claims_are_not_read_for_pods_that_wait_for_machines(world: Live, fake: FakeApi) -> None:
    lists(fake, [a_worker_job(active=2)], [unscheduled("0/3 nodes are available: Insufficient cpu"), a_pod(1)])
    await world.observe(OWNER, 1)
    assert [where for _, where, *_ in fake.asked if where.endswith("/events")] == []


@pytest.mark.parametrize("body", [b"no json", b"[1]", b"[" * 50_000], ids=["no-json", "no-object", "bomb"])
async def test_an_odd_answer_is_no_progress(world: Live, fake: FakeApi, body: bytes) -> None:
    lists(fake, [a_worker_job()], [a_pod(0, podIP="127.0.0.1")])
    fake.answers["GET", "/progress"] = 200, body
    assert (await world.observe(OWNER, 1)).progress is None
