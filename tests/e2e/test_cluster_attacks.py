"""What somebody could try who may write training jobs but should gain nothing by it.

Most attacks are impossible: the schema is closed, there is no field to say them with.  The others are refused by a
rule, or end as plain text.  docs/security.md lists each with its test.
"""

import json
import time
from typing import Any

import pytest

from deepseek_operator.controller.workqueue import SETTLE_S
from support.builders.operator import SPEC, merged
from support.cluster import kube
from support.cluster.api import path_of
from support.cluster.kube import Manifest, Namespace, TrainingJob, a_job
from support.samples.attacks import ANNOTATIONS, METADATA, REFUSED, TEXTS, UNSAYABLE

MERGE = "application/merge-patch+json"
PROBE = {"trainer": {"image": None, "profile": "cpu"}, "data": {"train": {"claimName": "nobody-makes-it"}}}


def nested(path: str, value: Any) -> Manifest:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def refusal_of(team: Namespace, manifest: Manifest) -> str:
    refusal = team.refusal(manifest)
    assert refusal, f"accepted: {manifest}"
    return refusal


def worker_job(team: Namespace, job: TrainingJob) -> Manifest:
    name = f"{job.name}-a1"
    return kube.wait_until(f"worker job {name}", lambda: team.get("jobs", name), 20)


def pods_of(team: Namespace, job: TrainingJob) -> str:
    """The pod template, as it would be for a job of any name."""
    made = worker_job(team, job)
    template = json.dumps(made["spec"]["template"], sort_keys=True)
    for found, instead in ((made["metadata"]["uid"], "WORKER"), (uid_of(job), "UID"), (job.name, "NAME")):
        template = template.replace(found, instead)
    return template


def uid_of(job: TrainingJob) -> str:
    found = job.found
    assert found is not None
    return str(found["metadata"]["uid"])


def answering(team: Namespace, name: str) -> None:
    """The operator takes care of a new job within seconds."""
    TrainingJob(team, a_job(name, {"suspend": True})).wait_for("Suspended", 20)


@pytest.mark.parametrize(("path", "value"), UNSAYABLE.values(), ids=list(UNSAYABLE))
def test_what_no_field_can_say_is_refused_or_dropped(team: Namespace, path: str, value: Any) -> None:
    key = {"checkpoint": {"encryption": {"keyRef": {"secretName": "keys"}}}} if "keyRef" in path else {}
    attack = a_job("attack", merged(key, nested(path, value)))
    assert f'unknown field "spec.{path}"' in refusal_of(team, attack)
    status, answer = team.dry_run(attack, validation="Ignore")
    assert status == 201
    kept: Any = answer["spec"]
    *parents, field = path.split(".")
    for parent in parents:
        kept = kept[parent]
    assert field not in kept


def test_pods_of_a_job_full_of_attacks_are_those_of_a_plain_one(team: Namespace) -> None:
    spec = merged(SPEC, PROBE)
    for path, value in UNSAYABLE.values():
        spec = merged(spec, {} if "keyRef" in path else nested(path, value))
    manifest = a_job("attacked", {}) | {"spec": spec}
    team.kubectl("create", "--validate=ignore", "-f", "-", input=json.dumps(manifest))
    plain = TrainingJob(team, a_job("plain", PROBE))
    attacked = TrainingJob(team, a_job("attacked", PROBE))
    assert pods_of(team, attacked) == pods_of(team, plain)


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=list(REFUSED))
def test_what_breaks_a_rule_is_refused(team: Namespace, changes: Manifest, words: str) -> None:
    assert words in refusal_of(team, a_job("attack", changes))


@pytest.mark.parametrize(("meta", "words"), METADATA.values(), ids=list(METADATA))
def test_hostile_metadata_are_refused(team: Namespace, meta: Manifest, words: str) -> None:
    assert words in refusal_of(team, merged(a_job("attack", {}), {"metadata": meta}))


def test_a_billion_laughs_are_refused(team: Namespace) -> None:
    doubled = "".join(f"  l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 10))
    text = f"apiVersion: training.dstj.io/v1alpha1\nkind: DeepSeekTrainingJob\nlaughs:\n  l0: &l0 [ha]\n{doubled}"
    status, answer = kube.server().answer("POST", jobs_of(team), text, "application/yaml")
    assert (status, "excessive aliasing" in answer) == (400, True)


@pytest.mark.parametrize("text", TEXTS)
def test_hostile_text_stays_text(team: Namespace, text: str) -> None:
    name = f"text-{TEXTS.index(text)}"
    job = TrainingJob(team, a_job(name, merged(PROBE, {"data": {"train": {"path": text}}})))
    template = worker_job(team, job)["spec"]["template"]
    assert json.dumps(text)[1:-1] not in json.dumps(template["spec"])
    config = template["metadata"]["annotations"]["training.dstj.io/config"]
    assert json.loads(config)["data"]["train"]["path"] == text


def test_annotations_give_no_orders_however_large_they_are(team: Namespace) -> None:
    before = kube.operator_restarts()
    job = TrainingJob(team, a_job("annotated", PROBE, annotations=ANNOTATIONS))
    plain = TrainingJob(team, a_job("bare", PROBE))
    assert pods_of(team, job) == pods_of(team, plain)
    for resource in ("serviceaccounts", "networkpolicies", "services", "persistentvolumeclaims"):
        child = team.get(resource, "dstj-annotated")
        assert child is not None
        assert not ANNOTATIONS.keys() & child["metadata"].get("annotations", {}).keys()
    assert kube.operator_restarts() == before


def test_a_foreign_owner_takes_nothing_along(team: Namespace) -> None:
    """Kubernetes collects whatever names an owner that is not there: the attacker's own job, never the victim's."""
    victim = TrainingJob(team, a_job("victim", PROBE))
    untouched = worker_job(team, victim)["metadata"]["uid"]
    foreign = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "victim",
        "uid": (victim.found or {})["metadata"]["uid"],
    }
    job = TrainingJob(team, a_job("foreign", {"suspend": True}, ownerReferences=[foreign]))
    kube.wait_until("the job with a foreign owner is collected", lambda: job.found is None, 30)
    assert worker_job(team, victim)["metadata"]["uid"] == untouched


def test_a_job_of_somebody_that_claims_to_be_ours_is_not_counted(team: Namespace) -> None:
    victim = TrainingJob(team, a_job("claimed", PROBE))
    true = worker_job(team, victim)
    meta = {"name": "claimed-a7", "ownerReferences": true["metadata"]["ownerReferences"]}
    meta["labels"] = {"training.dstj.io/job-name": "claimed", "training.dstj.io/attempt": "7"}
    spec = {"suspend": True, "template": {"spec": true["spec"]["template"]["spec"]}}
    team.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})
    answering(team, "after-the-claim")
    assert kube.wait_until("its status tells the attempt", lambda: victim.status.get("attempt"), 30) == 1


def test_who_may_edit_a_namespace_may_not_write_a_status(team: Namespace) -> None:
    job = TrainingJob(team, a_job("honest", {"suspend": True}))
    team.kubectl("create", "rolebinding", "mallory", "--clusterrole=edit", "--user=mallory")
    may = ("auth", "can-i", "patch", "dstj", "--as=mallory")
    kube.wait_until("mallory may edit", lambda: team.kubectl(*may) == "yes\n", 10)
    done = json.dumps({"status": {"phase": "Succeeded"}})
    mallory = kube.server(**{"Impersonate-User": "mallory"})
    status, said = mallory.answer("PATCH", f"{jobs_of(team)}/honest/status", done, MERGE)
    assert (status, 'cannot patch resource \\"deepseektrainingjobs/status' in said) == (403, True)
    job.wait_for("Suspended", 60)


def test_a_storm_of_updates_costs_others_nothing(team: Namespace, record_property: Any) -> None:
    job = TrainingJob(team, a_job("storm", {"suspend": True}))
    job.wait_for("Suspended", 60)
    before, settled = kube.operator_restarts(), job.status
    path, mark, began = f"{jobs_of(team)}/storm", kube.AUDIT_LOG.stat().st_size, time.monotonic()
    server = kube.server()
    for i in range(300):
        body = json.dumps({"metadata": {"labels": {"storm": str(i)}}})
        assert server.answer("PATCH", path, body, MERGE)[0] == 200
    answering(team, "after-the-storm")
    assert job.status == settled, "an update of a label is no reason to write a status"
    seconds = time.monotonic() - began
    asked = kube.asked_by_operator(mark, "storm")
    record_property("300 updates of a job: seconds, and looks of the operator at it", (round(seconds), len(asked)))
    assert {verb for verb, _ in asked} == {"get"}, "it writes nothing"
    assert 0 < len(asked) <= seconds / SETTLE_S + 1, "a look a second, however many updates"
    assert kube.operator_restarts() == before


def test_the_namespaces_of_these_tests_enforce_pod_security_restricted(team: Namespace) -> None:
    pod = {"hostNetwork": True, "containers": [{"name": "pause", "image": "localhost/pause:1"}]}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
    assert 'violates PodSecurity "restricted:latest"' in refusal_of(team, manifest)


def jobs_of(team: Namespace) -> str:
    return path_of(team.name, "deepseektrainingjobs")
