"""Who may do what, asked of the real API server: rights of teams, and the chart's ValidatingAdmissionPolicies.

Most is a server-side dry run: admission decides, nothing is kept.
"""

import json
from collections.abc import Callable

import pytest

from support.builders.operator import SPEC, merged
from support.cluster import kube
from support.cluster.kube import PAUSE, Manifest, Namespace
from support.samples.api import transit

OPERATOR = f"system:serviceaccount:{kube.OPERATOR_NAMESPACE}:{kube.RELEASE}"
JOB_CONTROLLER = "system:serviceaccount:kube-system:job-controller"
SPOOFED = {"training.dstj.io/job-uid": "5d2f2c1e-0000-4000-8000-000000000001"}


def a_pod(**labels: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "labels": labels}, "spec": PAUSE}


def a_batch_job(labels: Manifest, pod_labels: Manifest) -> Manifest:
    template = {"metadata": {"labels": pod_labels}, "spec": PAUSE}
    meta = {"name": "job", "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {"template": template}}


def a_training_job(**trainer: str | None) -> Manifest:
    meta, spec = {"name": "asked"}, merged(SPEC, {"trainer": trainer})
    return {"apiVersion": "training.dstj.io/v1alpha1", "kind": "DeepSeekTrainingJob", "metadata": meta, "spec": spec}


MINE = {"claimName": "mine"}
WITH_PROFILE = a_training_job(image=None, profile="cpu")


class Person:
    """A user with rights in one namespace."""

    def __init__(self, namespace: Namespace, name: str, *roles: str) -> None:
        self.namespace, self.name = namespace, name
        self.server = kube.server(**{"Impersonate-User": name})
        for role in roles:
            self.gets(role)

    def gets(self, role: str) -> None:
        self._bind(role, f"--clusterrole={role}")

    def may_create(self, *resources: str) -> None:
        """By a role of its own: no built-in one gives so little."""
        role = "-".join(("creator", *resources))
        self.namespace.kubectl("create", "role", role, "--verb=create", f"--resource={','.join(resources)}")
        self._bind(role, f"--role={role}")

    def _bind(self, role: str, kind: str) -> None:
        self.namespace.kubectl("create", "rolebinding", f"{self.name}-{role}", kind, f"--user={self.name}")

    def tries(self, *command: str) -> str:
        """What the API server says to a kubectl command of theirs; '' if it does it."""
        try:
            self.namespace.kubectl(f"--as={self.name}", *command)
        except AssertionError as refusal:
            return str(refusal)
        return ""

    def creates(self, manifest: Manifest) -> str:
        """What the API server says to the creation, as a dry run; '' if it would do it."""
        return self.namespace.refusal(manifest, by=self.server)


def soon(answer: Callable[[], str], *words: str) -> None:
    """Rights take a moment to reach the API server: wait until it says all `words`, or accepts where there are none."""

    def look() -> bool:
        said = answer()
        return all(word in said for word in words) if words else not said

    kube.wait_until(f"the API server answers {words or 'yes'}: {answer()}", look, timeout_s=10)


def test_who_may_not_create_pods_may_not_create_training_jobs(namespace: Namespace) -> None:
    bob = Person(namespace, "bob", "deepseek-operator-edit")
    soon(lambda: bob.creates(a_training_job()), "bob may not create pods in namespace", "ask for a RoleBinding")
    bob.gets("edit")
    soon(lambda: bob.creates(a_training_job()))


def test_egress_and_claims_are_for_those_who_may_make_them_by_themselves(namespace: Namespace) -> None:
    bob = Person(namespace, "bob", "deepseek-operator-edit")
    bob.may_create("pods")
    plain, opened, served, with_claim = (
        merged(a_training_job(), {"spec": spec})
        for spec in (
            {},
            {"network": {"egress": [{"cidr": "10.0.0.0/8", "ports": [443]}]}, "checkpoint": {"volume": MINE}},
            merged(transit(), {"checkpoint": {"volume": MINE}}),
            {"checkpoint": {"volume": MINE}},
        )
    )
    soon(lambda: bob.creates(with_claim))
    soon(lambda: bob.creates(plain), "bob may not create persistentvolumeclaims", "checkpoint.volume.claimName")
    soon(lambda: bob.creates(opened), "bob may not create networkpolicies", "network.egress")
    soon(lambda: bob.creates(served), "bob may not create networkpolicies", "keyRef.vaultTransit")
    bob.may_create("persistentvolumeclaims", "networkpolicies.networking.k8s.io")
    soon(lambda: bob.creates(plain))
    soon(lambda: bob.creates(opened))
    soon(lambda: bob.creates(served))


def test_who_names_a_profile_must_be_allowed_to_use_it_there(namespace: Namespace) -> None:
    alice = Person(namespace, "alice", "edit")
    soon(lambda: alice.creates(a_training_job()))
    soon(
        lambda: alice.creates(WITH_PROFILE),
        "alice may not use the TrainingProfile cpu",
        "deepseek-operator-profile-user",
    )
    alice.gets("deepseek-operator-profile-user")
    soon(lambda: alice.creates(WITH_PROFILE))


def test_a_viewer_reads_jobs_and_creates_none(namespace: Namespace) -> None:
    eve = Person(namespace, "eve", "view")
    soon(lambda: eve.tries("get", "dstj"))
    assert "cannot create resource" in eve.creates(a_training_job())


def test_a_change_of_labels_asks_for_no_rights_of_the_spec(namespace: Namespace) -> None:
    bob = Person(namespace, "bob", "deepseek-operator-edit")
    namespace.apply(merged(a_training_job(), {"spec": {"suspend": True}}))
    soon(lambda: bob.tries("label", "dstj/asked", "team=ml"))
    resume = json.dumps({"spec": {"suspend": False}})
    assert "bob may not create pods" in bob.tries("patch", "dstj/asked", "--type=merge", "-p", resume)


@pytest.mark.parametrize("user", ["system:admin", OPERATOR])
def test_nobody_but_the_job_controller_makes_a_pod_that_joins_a_job(namespace: Namespace, user: str) -> None:
    someone = Person(namespace, user, "edit")
    soon(lambda: someone.creates(a_pod()))
    assert "is set and changed by the Job controller only" in someone.creates(a_pod(**SPOOFED))


def test_the_job_controller_makes_the_pods_of_a_job(namespace: Namespace) -> None:
    assert Person(namespace, JOB_CONTROLLER).creates(a_pod(**SPOOFED)) == ""


@pytest.mark.parametrize("change", ["training.dstj.io/job-uid=x", "training.dstj.io/job-uid-"])
def test_no_pod_joins_or_leaves_a_job_later(namespace: Namespace, change: str) -> None:
    before = {} if change.endswith("=x") else SPOOFED
    namespace.kubectl("create", f"--as={JOB_CONTROLLER}", "-f", "-", input=json.dumps(a_pod(**before)))
    namespace.kubectl("label", "pod/pod", "other=label")
    assert "is set and changed by the Job controller only" in kube.refused(
        "-n", namespace.name, "label", "pod/pod", change
    )


def test_an_update_of_its_status_takes_no_pod_out_of_its_job_either(namespace: Namespace) -> None:
    namespace.kubectl("create", f"--as={JOB_CONTROLLER}", "-f", "-", input=json.dumps(a_pod(**SPOOFED)))
    where = ("-n", namespace.name, "patch", "pod/pod", "--subresource=status", "--type=merge", "-p")
    kube.kubectl(*where, json.dumps({"status": {"message": "a kubelet's"}}))
    without = json.dumps({"metadata": {"labels": dict.fromkeys(SPOOFED)}})
    assert "is set and changed by the Job controller only" in kube.refused(*where, without)


@pytest.mark.parametrize(("labels", "pod_labels"), [(SPOOFED, {}), ({}, SPOOFED)], ids=["job", "template"])
def test_only_the_operator_makes_worker_jobs(namespace: Namespace, labels: Manifest, pod_labels: Manifest) -> None:
    alice = Person(namespace, "alice", "edit")
    soon(lambda: alice.creates(a_batch_job({}, {})))
    assert f"is set and changed by {OPERATOR} only" in alice.creates(a_batch_job(labels, pod_labels))
    assert Person(namespace, OPERATOR).creates(a_batch_job(labels, pod_labels)) == ""


def test_a_plain_job_becomes_a_worker_job_for_nobody(namespace: Namespace) -> None:
    alice = Person(namespace, "alice", "edit")
    soon(lambda: alice.creates(a_batch_job({}, {})))
    namespace.kubectl("create", "-f", "-", input=json.dumps(merged(a_batch_job({}, {}), {"spec": {"suspend": True}})))
    said = kube.refused("-n", namespace.name, "label", "job/job", "training.dstj.io/job-uid=x", "--as=alice")
    assert f"is set and changed by {OPERATOR} only" in said


def test_the_operator_of_another_release_makes_worker_jobs_too(namespace: Namespace) -> None:
    other = Person(namespace, "system:serviceaccount:second:second-deepseek-operator", "edit")
    soon(lambda: other.creates(a_batch_job({}, {})))
    assert f"is set and changed by {OPERATOR} only" in other.creates(a_batch_job(SPOOFED, SPOOFED)), (
        "a name is no right"
    )
    namespace.kubectl("create", "role", "operator", "--verb=patch", "--resource=deepseektrainingjobs/status")
    namespace.kubectl("create", "rolebinding", "operator", "--role=operator", f"--user={other.name}")
    soon(lambda: other.creates(a_batch_job(SPOOFED, SPOOFED)))


def test_an_administrator_makes_no_worker_jobs(namespace: Namespace) -> None:
    root = Person(namespace, "root", "cluster-admin")
    soon(lambda: root.creates(a_batch_job({}, {})))
    assert f"is set and changed by {OPERATOR} only" in root.creates(a_batch_job(SPOOFED, {}))
