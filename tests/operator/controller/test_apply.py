"""Objects are made and changed for their owner, and nobody else's object is touched, over real sockets."""

from typing import Any

import pytest

from deepseek_operator.api.names import API_VERSION, KIND
from deepseek_operator.controller.client import Api, ApiError, path
from deepseek_operator.controller.cluster import KubernetesCluster
from deepseek_operator.controller.reconcile import RefusedError
from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.manifests import children
from deepseek_operator.objects.observed import Manifest, OwnerKey, Sighting
from deepseek_operator.objects.plan import Cause
from support.builders.operator import OWNER, SETTINGS, a_spec, a_training_job, a_worker_job, merged
from support.fakes.api_server import FakeApi

KEY = OwnerKey("ml", "demo")
MADE = children(Blueprint(a_spec(), OWNER, None, SETTINGS, 1, {}))
OURS = {"apiVersion": API_VERSION, "kind": KIND, "name": OWNER.name, "uid": OWNER.uid, "controller": True}
EARLIER = OURS | {"uid": "of-an-earlier-job"}
DEPLOYMENT = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "7", "controller": True}


def where(manifest: Manifest) -> str:
    return path(manifest["apiVersion"], manifest["kind"], "ml", manifest["metadata"]["name"])


def found(manifest: Manifest, *owners: Manifest, **meta: Any) -> Manifest:
    """What is there under the name of `manifest`."""
    return {
        "metadata": {
            "name": manifest["metadata"]["name"],
            "uid": "its-uid",
            "resourceVersion": "7",
            "ownerReferences": owners,
        }
        | meta
    }


def there_is(fake: FakeApi, manifest: Manifest, there: Manifest) -> None:
    fake.answers["POST", where(manifest).rpartition("/")[0]] = 409, {"message": "already exists"}
    fake.answers["GET", where(manifest)] = 200, there
    fake.answers["PATCH", where(manifest)] = 200, {}


async def a_new_job(cluster: KubernetesCluster) -> None:
    cluster.saw(Sighting(KEY, "7", is_owner=True, owner=a_training_job(), is_new=True))
    assert await cluster.fetch(KEY)


def verbs(fake: FakeApi) -> list[str]:
    return [verb for verb, *_ in fake.asked]


async def refusal(cluster: KubernetesCluster, manifest: Manifest) -> tuple[Cause, str]:
    with pytest.raises(RefusedError) as refused:
        await cluster.apply(manifest)
    return refused.value.refusal.cause, refused.value.refusal.message


@pytest.mark.parametrize("manifest", MADE, ids=lambda manifest: manifest["kind"])
async def test_an_object_of_a_new_job_is_made_by_one_plain_create(
    cluster: KubernetesCluster, fake: FakeApi, manifest: Manifest
) -> None:
    await a_new_job(cluster)
    collection = where(manifest).rpartition("/")[0]
    fake.answers["POST", collection] = 201, {}
    await cluster.apply(manifest)
    query = {"fieldManager": "deepseek-operator", "fieldValidation": "Ignore"}
    assert fake.asked == [("POST", collection, query, manifest, "application/json")]


@pytest.mark.parametrize("is_new", [True, False])
async def test_what_is_the_jobs_own_is_applied_by_force_if_it_is_still_the_one_that_was_read(
    cluster: KubernetesCluster, fake: FakeApi, is_new: bool
) -> None:
    if is_new:
        await a_new_job(cluster)
    there_is(fake, a_worker_job(), found(a_worker_job(), OURS))
    await cluster.apply(a_worker_job())
    assert verbs(fake) == ["POST", "GET", "PATCH"][not is_new :]
    *_, (_, _, query, body, content_type) = fake.asked
    assert (query["force"], content_type) == ("true", "application/apply-patch+yaml")
    assert body == merged(a_worker_job(), {"metadata": {"uid": "its-uid", "resourceVersion": "7"}})


@pytest.mark.parametrize("manifest", MADE, ids=lambda manifest: manifest["kind"])
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ({"ownerReferences": [DEPLOYMENT]}, "it belongs to 'Deployment' 'web'"),
        ({"ownerReferences": [DEPLOYMENT | {"controller": False}]}, "it belongs to 'Deployment' 'web'"),
        ({"ownerReferences": [OURS | {"controller": False}]}, "it belongs to"),
        ({"labels": {"app": "web"}}, "it has no owner, labels 'app=web'"),
        (
            {"managedFields": [{"manager": "kubectl-create"}]},
            "it has no owner, no labels, and was written by 'kubectl-create'",
        ),
        ({"labels": {"training.dstj.io/job-name": "demo"}}, "it has no owner, labels 'training.dstj.io/job-name=demo'"),
    ],
)
async def test_an_object_of_somebody_else_is_named_and_not_touched(
    cluster: KubernetesCluster, fake: FakeApi, manifest: Manifest, *, is_new: bool, meta: Manifest, told: str
) -> None:
    if is_new:
        await a_new_job(cluster)
    there_is(fake, manifest, found(manifest, **meta))
    cause, message = await refusal(cluster, manifest)
    assert cause is Cause.TAKEN
    assert message.startswith(f"{manifest['kind']} {manifest['metadata']['name']} is somebody else's: {told}")
    assert "delete it, or make the job anew under another name" in message
    assert verbs(fake) == ["POST", "GET"][not is_new :]


@pytest.mark.parametrize("manifest", [made for made in MADE if made["kind"] != "PersistentVolumeClaim"])
async def test_our_labels_alone_make_no_object_ours(
    cluster: KubernetesCluster, fake: FakeApi, manifest: Manifest
) -> None:
    there_is(fake, manifest, found(manifest, labels=manifest["metadata"]["labels"]))
    assert (await refusal(cluster, manifest))[0] is Cause.TAKEN


@pytest.mark.parametrize("retention", ["Retain", "Delete"])
async def test_a_claim_that_an_earlier_job_of_the_name_left_is_used_again(
    cluster: KubernetesCluster, fake: FakeApi, retention: str
) -> None:
    claim = a_claim(retention)
    labels = claim["metadata"]["labels"] | {"training.dstj.io/job-uid": "of-an-earlier-job"}
    there_is(fake, claim, found(claim, labels=labels))
    await cluster.apply(claim)
    assert verbs(fake) == ["GET", "PATCH"]


@pytest.mark.parametrize(
    "changed", [{"app.kubernetes.io/managed-by": "helm"}, {"training.dstj.io/job-name": "another"}]
)
async def test_a_claim_with_other_labels_is_somebody_elses(
    cluster: KubernetesCluster, fake: FakeApi, changed: Manifest
) -> None:
    claim = a_claim("Retain")
    there_is(fake, claim, found(claim, labels=claim["metadata"]["labels"] | changed))
    assert (await refusal(cluster, claim))[0] is Cause.TAKEN


def a_claim(retention: str) -> Manifest:
    spec = a_spec(checkpoint={"volume": {"whenDeleted": retention}})
    made = children(Blueprint(spec, OWNER, None, SETTINGS, 1, {}))
    return next(each for each in made if each["kind"] == "PersistentVolumeClaim")


@pytest.mark.parametrize("manifest", MADE, ids=lambda manifest: manifest["kind"])
@pytest.mark.parametrize(
    ("owner", "meta", "told"),
    [
        (EARLIER, {}, "still belongs to an earlier job of this name, which is being deleted"),
        (OURS, {"deletionTimestamp": "2026-01-02T03:04:05Z"}, "is being deleted"),
    ],
)
async def test_an_object_that_is_about_to_go_is_waited_for(
    cluster: KubernetesCluster, fake: FakeApi, manifest: Manifest, *, owner: Manifest, meta: Manifest, told: str
) -> None:
    there_is(fake, manifest, found(manifest, owner, **meta))
    cause, message = await refusal(cluster, manifest)
    assert cause is Cause.LEAVING
    assert message == f"{manifest['kind']} {manifest['metadata']['name']} {told}"
    assert verbs(fake) == ["GET"]


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_what_no_retry_changes_is_a_refusal_with_the_servers_words(
    cluster: KubernetesCluster, fake: FakeApi, status: int
) -> None:
    fake.answers["POST", where(a_worker_job()).rpartition("/")[0]] = status, {"message": "exceeded quota: team"}
    assert await refusal(cluster, a_worker_job()) == (Cause.REFUSED, "Job demo-a1: exceeded quota: team")
    there_is(fake, a_worker_job(), found(a_worker_job(), OURS))
    fake.answers["PATCH", where(a_worker_job())] = status, {"message": "it is immutable"}
    assert await refusal(cluster, a_worker_job()) == (Cause.CHANGE_REFUSED, "Job demo-a1: it is immutable")


async def test_a_right_to_read_that_is_missing_is_a_refusal(cluster: KubernetesCluster, fake: FakeApi) -> None:
    fake.answers["GET", where(a_worker_job())] = 403, {"message": "cannot get resource jobs"}
    assert await refusal(cluster, a_worker_job()) == (Cause.REFUSED, "Job demo-a1: cannot get resource jobs")


async def test_what_is_there_is_applied_although_a_quota_refuses_to_create_it(
    cluster: KubernetesCluster, fake: FakeApi
) -> None:
    await a_new_job(cluster)
    there_is(fake, a_worker_job(), found(a_worker_job(), OURS))
    fake.answers["POST", where(a_worker_job()).rpartition("/")[0]] = 403, {"message": "exceeded quota: team"}
    await cluster.apply(a_worker_job())
    assert verbs(fake) == ["POST", "GET", "PATCH"]


async def test_an_object_that_changed_since_it_was_read_is_read_again(
    cluster: KubernetesCluster, fake: FakeApi
) -> None:
    job = a_worker_job()
    fake.answers["GET", where(job)] = 200, [found(job, OURS), found(job, DEPLOYMENT)]
    fake.answers["PATCH", where(job)] = 409, {"message": "the object has been modified"}
    assert (await refusal(cluster, job))[0] is Cause.TAKEN
    assert verbs(fake) == ["GET", "PATCH", "GET"]


@pytest.mark.parametrize("status", [409, 429, 500, 503])
@pytest.mark.parametrize("is_there", [True, False])
async def test_what_a_retry_may_change_goes_to_the_queue(
    cluster: KubernetesCluster, fake: FakeApi, status: int, is_there: bool
) -> None:
    if is_there:
        there_is(fake, a_worker_job(), found(a_worker_job(), OURS))
    verb, name = ("PATCH", where(a_worker_job())) if is_there else ("POST", where(a_worker_job()).rpartition("/")[0])
    fake.answers[verb, name] = status, b"<html>busy</html>"
    with pytest.raises(ApiError, match="busy"):
        await cluster.apply(a_worker_job())


async def test_the_words_of_others_are_bounded(cluster: KubernetesCluster, fake: FakeApi) -> None:
    labels = {f"label-{number}": 1000 * "x" for number in range(50)}
    there_is(fake, a_worker_job(), found(a_worker_job(), labels=labels))
    message = (await refusal(cluster, a_worker_job()))[1]
    assert len(message) < 500
    assert "label-0=xxx" in message


INVALID = {
    "message": 'Job.batch "demo-a1" is invalid: spec.template: Invalid value: {"metadata":{}}: field is immutable',
    "details": {
        "causes": [
            {"field": "spec.template", "message": f'Invalid value: {{"x": "{500 * "x"}"}}: field is immutable'},
            {"field": "spec", "message": "Forbidden: is immutable for bound claims\n core.Spec{\n- 1\n+ 2"},
            {"field": "spec.completions", "message": "Invalid value: 3: field is immutable"},
            {"field": "spec.x", "message": f"Invalid value: core.Template{{a: {100 * 'x'}}}: cannot be changed"},
            {"field": "spec.y", "message": "Required value"},
        ]
    },
}


async def test_a_refusal_names_fields_and_rules_and_quotes_no_templates(api: Api, fake: FakeApi) -> None:
    fake.answers["POST", where(a_worker_job()).rpartition("/")[0]] = 422, INVALID
    with pytest.raises(ApiError) as error:
        await api.create(a_worker_job())
    assert error.value.message == (
        "spec.template: field is immutable; spec: is immutable for bound claims; "
        "spec.completions: 3: field is immutable; spec.x: cannot be changed; spec.y: Required value"
    )
