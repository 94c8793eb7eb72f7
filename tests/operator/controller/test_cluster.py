"""The real cluster's adapter against a small API server over real sockets: verbs, deadlines, errors."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from kubernetes.aio.client import ApiClient, Configuration

from deepseek_operator.api.names import API_VERSION, KIND
from deepseek_operator.controller.client import Api, ApiError, NamespaceLeavingError, path
from deepseek_operator.controller.cluster import KubernetesCluster
from deepseek_operator.controller.leader import ApiLease
from deepseek_operator.controller.pages import MAX_PAGE, read_page
from deepseek_operator.controller.service import versions
from deepseek_operator.jobs.look import POD
from deepseek_operator.jobs.progress import last_words
from deepseek_operator.objects.observed import Manifest, Notice, OwnerKey, Ref, Sighting
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.progress import Progress
from support.builders.operator import NOW, OWNER, a_pod, a_training_job, a_worker_job, terminated
from support.fakes.api_server import FakeApi

JOB_PATH = "/apis/training.dstj.io/v1alpha1/namespaces/ml/deepseektrainingjobs/demo"
KEY = OwnerKey("ml", "demo")
QUOTAS, PODS = "/api/v1/namespaces/ml/resourcequotas", "/api/v1/namespaces/ml/pods"


async def test_a_training_job_is_read_and_a_missing_one_is_none(cluster: KubernetesCluster, fake: FakeApi) -> None:
    assert await cluster.fetch(KEY) is None
    fake.answers["GET", JOB_PATH] = 200, a_training_job()
    assert await cluster.fetch(KEY) == a_training_job()


async def test_the_first_look_at_a_job_that_was_created_just_now_needs_no_request(
    cluster: KubernetesCluster, fake: FakeApi
) -> None:
    cluster.saw(Sighting(KEY, "7", is_owner=True, owner=a_training_job(), is_new=True))
    assert await cluster.fetch(KEY) == a_training_job()
    fake.answers["GET", PODS] = 200, {"items": [a_pod()]}
    assert await cluster.children(OWNER, POD) == ()
    assert fake.asked == []
    assert await cluster.fetch(KEY) is None
    assert len(await cluster.children(OWNER, POD)) == 1


async def test_a_first_look_that_ended_early_is_not_remembered(cluster: KubernetesCluster, fake: FakeApi) -> None:
    cluster.saw(Sighting(KEY, "7", is_owner=True, owner=a_training_job(), is_new=True))
    fake.answers["GET", PODS] = 200, {"items": [a_pod()]}
    await cluster.fetch(KEY)  # its spec broke a rule
    await cluster.fetch(KEY)  # it was repaired
    assert len(await cluster.children(OWNER, POD)) == 1


async def test_a_job_that_was_changed_before_its_first_look_is_looked_at(
    cluster: KubernetesCluster, fake: FakeApi
) -> None:
    changed = a_training_job({"suspend": True})
    fake.answers["GET", JOB_PATH] = 200, changed
    cluster.saw(Sighting(KEY, "7", is_owner=True, owner=a_training_job(), is_new=True))
    cluster.saw(Sighting(KEY, "8", is_owner=True))
    assert await cluster.fetch(KEY) == changed


@pytest.mark.parametrize("sighting", [Sighting(KEY, "7", is_owner=True), Sighting(KEY, "7")])
async def test_a_job_that_a_list_found_is_looked_at(cluster: KubernetesCluster, sighting: Sighting) -> None:
    cluster.saw(sighting)
    assert await cluster.fetch(KEY) is None


async def test_a_write_that_hangs_meets_its_deadline(api: Api, fake: FakeApi) -> None:
    fake.answering.clear()
    api._deadline_s = 0.05
    with pytest.raises(TimeoutError):
        await api.apply(a_worker_job())


TERMINATED = {  # as kube-apiserver 1.34 answers
    "message": "unable to create new content in namespace ml because it is being terminated",
    "details": {"causes": [{"reason": "NamespaceTerminating", "message": "...", "field": "metadata.namespace"}]},
}


@pytest.mark.parametrize("answer", [(403, TERMINATED), (404, {"message": 'namespaces "ml" not found'})])
async def test_nothing_more_is_made_in_a_namespace_that_is_being_deleted(
    cluster: KubernetesCluster, fake: FakeApi, answer: tuple[int, Manifest]
) -> None:
    fake.answers["GET", JOB_PATH] = 200, a_training_job()
    fake.answers["POST", "/api/v1/namespaces/ml/events"] = answer
    assert await cluster.fetch(KEY)
    with pytest.raises(NamespaceLeavingError):
        await cluster.emit(OWNER, Notice("AttemptFailed", "its pods were deleted"))
    with pytest.raises(NamespaceLeavingError):
        await cluster.fetch(KEY)
    cluster.saw(Sighting(OwnerKey("ml", "new"), "9", is_owner=True, owner=a_training_job(), is_new=True))
    assert await cluster.fetch(KEY), "a namespace of that name was made anew"


async def test_an_object_is_tried_once_in_a_namespace_that_is_being_deleted(
    cluster: KubernetesCluster, fake: FakeApi
) -> None:
    cluster.saw(Sighting(KEY, "7", is_owner=True, owner=a_training_job(), is_new=True))
    await cluster.fetch(KEY)
    fake.answers["POST", "/apis/batch/v1/namespaces/ml/jobs"] = 403, TERMINATED
    with pytest.raises(NamespaceLeavingError):
        await cluster.apply(a_worker_job())
    assert len(fake.asked) == 1


async def test_a_namespace_that_is_being_deleted_is_looked_at_again_some_time(
    cluster: KubernetesCluster, fake: FakeApi
) -> None:
    fake.answers["GET", JOB_PATH] = 200, a_training_job()
    fake.answers["POST", "/api/v1/namespaces/ml/events"] = 403, TERMINATED
    with pytest.raises(NamespaceLeavingError):
        await cluster.emit(OWNER, Notice("AttemptFailed", "its pods were deleted"))
    cluster._now = lambda: NOW + timedelta(seconds=Settings().resync_s)
    assert await cluster.fetch(KEY)


async def test_a_delete_hits_only_the_object_that_was_seen(cluster: KubernetesCluster, fake: FakeApi) -> None:
    where = "/apis/batch/v1/namespaces/ml/jobs/demo-a1"
    ref = Ref("batch/v1", "Job", "ml", "demo-a1", "the-uid")
    fake.answers["DELETE", where] = 200, {}
    await cluster.delete(ref)
    options = {"preconditions": {"uid": "the-uid"}, "propagationPolicy": "Background"}
    assert fake.asked == [("DELETE", where, {}, options, "application/json")]


@pytest.mark.parametrize("status", [404, 409])
async def test_a_delete_of_what_is_gone_is_done(cluster: KubernetesCluster, fake: FakeApi, status: int) -> None:
    fake.answers["DELETE", "/apis/batch/v1/namespaces/ml/jobs/demo-a1"] = status, {"message": "?"}
    await cluster.delete(Ref("batch/v1", "Job", "ml", "demo-a1", "the-uid"))


def written(version: str, *, generation: int = 1) -> tuple[int, Manifest]:
    """Answer to a write of the status."""
    return 200, {"metadata": {"resourceVersion": version, "generation": generation}}


async def test_the_status_is_written_for_this_uid_only(cluster: KubernetesCluster, fake: FakeApi) -> None:
    fake.answers["PATCH", f"{JOB_PATH}/status"] = written("8")
    await cluster.set_status(OWNER, {"phase": "Running", "observedGeneration": 1})
    ((_, _, query, body, _),) = fake.asked
    assert query["force"] == "true"
    assert body == {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"namespace": "ml", "name": "demo", "uid": OWNER.uid},
        "status": {"phase": "Running", "observedGeneration": 1},
    }


@pytest.mark.parametrize(("generation", "is_echo"), [(1, True), (2, False)])
async def test_the_event_of_an_own_write_is_an_echo_unless_the_spec_changed_before_it(
    cluster: KubernetesCluster, fake: FakeApi, generation: int, is_echo: bool
) -> None:
    fake.answers["PATCH", f"{JOB_PATH}/status"] = written("8", generation=generation)
    await cluster.set_status(OWNER, {"phase": "Running", "observedGeneration": 1})
    assert cluster.is_echo(Sighting(KEY, "8")) is is_echo
    assert not cluster.is_echo(Sighting(KEY, "9"))
    await cluster.fetch(KEY)  # it is gone, and a namesake may come
    assert not cluster.is_echo(Sighting(KEY, "8"))


async def test_a_report_of_no_transition_waits_a_while_after_the_last_one(
    cluster: KubernetesCluster, fake: FakeApi
) -> None:
    assert cluster.pause_s(KEY) == 0
    fake.answers["PATCH", f"{JOB_PATH}/status"] = written("8")
    await cluster.set_status(OWNER, {"phase": "Running", "observedGeneration": 1})
    pauses = []
    for seconds in (0, 2, 5, 60):
        cluster._now = lambda: NOW + timedelta(seconds=seconds)  # noqa: B023
        pauses.append(cluster.pause_s(KEY))
    assert pauses == [5, 3, 0, 0]


@pytest.mark.parametrize("status", [404, 409])
async def test_the_status_of_a_job_that_is_gone_is_dropped(
    cluster: KubernetesCluster, fake: FakeApi, status: int
) -> None:
    fake.answers["PATCH", f"{JOB_PATH}/status"] = status, {"message": "?"}
    await cluster.set_status(OWNER, {"phase": "Running"})


async def test_an_event_tells_about_the_job_and_may_be_lost(cluster: KubernetesCluster, fake: FakeApi) -> None:
    await cluster.emit(OWNER, Notice("AttemptFailed", "x" * 5000, "Warning"))
    ((method, where, _, body, _),) = fake.asked
    assert (method, where) == ("POST", "/api/v1/namespaces/ml/events")
    assert (body["type"], body["reason"], body["involvedObject"]["uid"]) == ("Warning", "AttemptFailed", OWNER.uid)
    assert len(body["message"]) == 1024


@pytest.mark.parametrize("passes_between", [0, 1])
async def test_a_job_that_is_made_anew_after_its_deletion_is_looked_at(
    cluster: KubernetesCluster, fake: FakeApi, passes_between: int
) -> None:
    fake.answers["GET", JOB_PATH] = 200, a_training_job(uid="a-namesake")
    await cluster.fetch(KEY)
    del fake.answers["GET", JOB_PATH]
    for _ in range(passes_between):
        await cluster.fetch(KEY)
    cluster.saw(Sighting(KEY, "7", is_owner=True, owner=a_training_job(), is_new=True))
    await cluster.fetch(KEY)
    fake.answers["GET", PODS] = 200, {"items": [a_pod()]}
    assert len(await cluster.children(OWNER, POD)) == 1


async def test_only_so_many_deleted_jobs_are_remembered(
    cluster: KubernetesCluster, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek_operator.controller.cluster.MAX_DELETED", 1)
    keys = [replace(KEY, name=name) for name in ("a", "b")]
    for key in keys:
        cluster.count(key, a_training_job())
        cluster.count(key, None)
    fake.answers["GET", PODS] = 200, {"items": []}
    for key, num_requests in zip(keys, (0, 1), strict=True):
        cluster.saw(Sighting(key, "7", is_owner=True, owner=a_training_job(), is_new=True))
        await cluster.fetch(key)
        before = len(fake.asked)
        await cluster.children(replace(OWNER, name=key.name), POD)
        assert len(fake.asked) - before == num_requests


async def test_the_last_words_of_node_0_outlive_its_pod_but_not_the_job(cluster: KubernetesCluster) -> None:
    cluster.saw(Sighting(KEY, "8", departed=a_pod(1, "Failed", **terminated(143, "node 1"))))
    assert cluster.departed(OWNER) == ()
    last = a_pod(0, "Failed", **terminated(143, json.dumps({"stage": "training", "step": 14})))
    cluster.saw(Sighting(KEY, "9", departed=last))
    assert last_words(cluster.departed(OWNER), attempt=1) == Progress(stage="training", step=14)
    assert cluster.departed(replace(OWNER, uid="a-namesake")) == ()
    assert await cluster.fetch(KEY) is None
    assert cluster.departed(OWNER) == ()


async def test_a_role_without_quotas_costs_the_look_at_them_and_no_more(
    cluster: KubernetesCluster, fake: FakeApi, caplog: pytest.LogCaptureFixture
) -> None:
    fake.answers["GET", QUOTAS] = 403, {"message": "resourcequotas is forbidden"}
    assert await cluster.quotas("ml") == ()
    assert "the quotas of ml cannot be read: 403: resourcequotas is forbidden" in caplog.text
    fake.answers["GET", QUOTAS] = 500, {"message": "busy"}
    with pytest.raises(ApiError, match="busy"):
        await cluster.quotas("ml")


async def test_events_about_objects_of_a_kind_are_told_newest_first(cluster: KubernetesCluster, fake: FakeApi) -> None:
    def event(name: str, at: str) -> Manifest:
        about = {"kind": "PersistentVolumeClaim", "name": name}
        return {
            "reason": "FailedBinding",
            "message": f"no volume at {at}",
            "lastTimestamp": at,
            "involvedObject": about,
        }

    events = [event("old", "2026-01-02T03:00:00Z"), event("new", "2026-01-02T03:01:00Z")]
    fake.answers["GET", "/api/v1/namespaces/ml/events"] = 200, {"items": events}
    assert [event.name for event in await cluster.events("ml", "PersistentVolumeClaim")] == ["new", "old"]


async def test_a_role_without_a_right_to_list_costs_that_list_alone(
    cluster: KubernetesCluster, fake: FakeApi, caplog: pytest.LogCaptureFixture
) -> None:
    where = "/apis/scheduling.k8s.io/v1/priorityclasses"
    fake.answers["GET", where] = 403, {"message": "priorityclasses is forbidden"}
    assert await cluster.listed("scheduling.k8s.io/v1", "PriorityClass", "") == ()
    assert "no PriorityClass can be listed: 403: priorityclasses is forbidden" in caplog.text
    fake.answers["GET", where] = 500, {"message": "busy"}
    with pytest.raises(ApiError, match="busy"):
        await cluster.listed("scheduling.k8s.io/v1", "PriorityClass", "")


async def test_a_page_is_read_from_a_pod_that_has_an_address(cluster: KubernetesCluster, fake: FakeApi) -> None:
    fake.answers["GET", "/progress"] = 200, {"step": 7}
    port = int(fake.url.rsplit(":", 1)[1])
    assert await cluster.page(a_pod(podIP="127.0.0.1"), port, "/progress") == b'{"step": 7}'
    assert await cluster.page(a_pod(), port, "/progress") is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(500, b"{}", id="error"),
        pytest.param(302, b"{}", id="redirect"),
        pytest.param(200, b'"' + b"x" * MAX_PAGE + b'"', id="too-long"),
    ],
)
async def test_an_odd_answer_is_no_page(fake: FakeApi, status: int, body: bytes) -> None:
    fake.answers["GET", "/progress"] = status, body
    async with aiohttp.ClientSession() as session:
        assert await read_page(session, "127.0.0.1", int(fake.url.rsplit(":", 1)[1]), "/progress") is None


async def test_a_pod_that_is_away_serves_no_page() -> None:
    async with aiohttp.ClientSession() as session:
        assert await read_page(session, "127.0.0.1", 1, "/progress") is None


async def test_requests_take_the_way_that_the_environment_names(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", fake.url)
    monkeypatch.setenv("no_proxy", "inside.example")
    fake.answers["GET", "/version"] = 200, {"major": "1"}
    async with ApiClient(Configuration(host="http://outside.example")) as client:
        assert await Api(client).get("/version") == {"major": "1"}
    async with ApiClient(Configuration(host="http://inside.example")) as client:
        with pytest.raises(aiohttp.ClientConnectionError):
            await Api(client).get("/version")


async def test_requests_carry_the_token(api: Api, fake: FakeApi) -> None:
    await api.get(path(API_VERSION, KIND, "ml", "demo"))
    assert fake.tokens == {"Bearer secret"}


async def test_versions_are_listed_over_all_watched_namespaces(api: Api, fake: FakeApi) -> None:
    def found(*names: str, more: str = "") -> dict[str, Any]:
        items = [{"metadata": {"namespace": "ml", "name": name, "resourceVersion": name * 2}} for name in names]
        return {"items": items, "metadata": {"continue": more}}

    fake.answers["GET", path(API_VERSION, KIND)] = 200, [found("a", more="next"), found("b")]
    fake.answers["GET", path(API_VERSION, KIND, "ml")] = 200, found("c")
    assert await versions(api, KIND, ()) == {OwnerKey("ml", "a"): "aa", OwnerKey("ml", "b"): "bb"}
    assert await versions(api, KIND, ("ml",)) == {OwnerKey("ml", "c"): "cc"}
    fake.answers["GET", path(API_VERSION, KIND)] = 200, {"items": None, "metadata": {}}
    assert await versions(api, KIND, ()) == {}, "as API servers answer where there is no job"


LEASE = "/apis/coordination.k8s.io/v1/namespaces/ops/leases"


@pytest.mark.parametrize(("status", "is_written"), [(200, True), (409, False)])
async def test_a_lease_is_created_or_replaced_at_its_version(
    api: Api, fake: FakeApi, status: int, is_written: bool
) -> None:
    fake.answers["POST", LEASE] = fake.answers["PUT", f"{LEASE}/op"] = status, {}
    lease = ApiLease(api, "ops", "op")
    assert await lease.write({"spec": {}}) is is_written
    assert await lease.write({"spec": {}, "metadata": {"name": "op", "resourceVersion": "7"}}) is is_written
    assert [(method, body["metadata"]["name"]) for method, _, _, body, _ in fake.asked] == [
        ("POST", "op"),
        ("PUT", "op"),
    ]


async def test_a_broken_lease_is_an_error(api: Api, fake: FakeApi) -> None:
    fake.answers["POST", LEASE] = 403, {"message": "forbidden"}
    with pytest.raises(ApiError, match="forbidden"):
        await ApiLease(api, "ops", "op").write({"spec": {}})


def test_paths_are_those_of_the_api_server() -> None:
    expected: dict[str, Callable[[], str]] = {
        "/api/v1/namespaces/ml/pods/p": lambda: path("v1", "Pod", "ml", "p"),
        "/apis/batch/v1/namespaces/ml/jobs": lambda: path("batch/v1", "Job", "ml"),
        "/apis/training.dstj.io/v1alpha1/trainingprofiles/h100": lambda: path(
            API_VERSION, "TrainingProfile", name="h100"
        ),
        f"{JOB_PATH}/status": lambda: path(API_VERSION, KIND, "ml", "demo", "status"),
    }
    assert [make() for make in expected.values()] == list(expected)
