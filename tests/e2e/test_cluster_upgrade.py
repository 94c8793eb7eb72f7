"""The chart itself: its own test, an upgrade and an uninstall while a job trains, an installation for one namespace.

All of it changes the one installation that every other test uses: hence a file that comes last.
"""

from pathlib import Path
from typing import Any

from support.cluster import kube
from support.cluster.kube import Namespace, TrainingJob, a_job, example

INSTANCE = f"app.kubernetes.io/instance={kube.RELEASE}"
SERVICE_ACCOUNT = f"system:serviceaccount:{kube.OPERATOR_NAMESPACE}:{kube.RELEASE}"
DEFINITIONS = {
    f"customresourcedefinition.apiextensions.k8s.io/{plural}.training.dstj.io"
    for plural in ("deepseektrainingjobs", "trainingprofiles")
}
OF_EVERY_NAMESPACE = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
OPERATORS_OWN = {"lease.coordination.k8s.io/deepseek-operator"}  # it makes its Lease itself, and Helm does not know it


def workers(job: TrainingJob) -> Any:
    """All that a disturbance would change: the worker job to the last write, its pods and their restarts."""
    worker_jobs = [(found["metadata"]["name"], found["metadata"]["resourceVersion"]) for found in jobs_of(job)]
    restarts = [
        (pod["metadata"]["uid"], container["restartCount"])
        for pod in job.pods
        for container in (*pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"])
    ]
    return worker_jobs, restarts


def jobs_of(job: TrainingJob) -> list[kube.Manifest]:
    return job.namespace.list("jobs", f"training.dstj.io/job-name={job.name}")


def a_long_job(namespace: Namespace) -> TrainingJob:
    """Trains already, and until the test is over; its worker job has settled."""
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    optimization = {"maxSteps": 4000, "globalBatchSize": 4}  # a step in twenty is logged
    job = TrainingJob(namespace, example("pretrain-tiny", optimization=optimization, evaluation={"maxRows": 2}))
    job.wait_for("Running", 180)
    job.wait_for_step(1, 300)
    kube.wait_until("both pods count as ready", lambda: jobs_of(job)[0]["status"].get("ready") == 2)
    return job


def trains_on(job: TrainingJob) -> None:
    job.wait_for_step(max(job.steps, default=0) + 1, 60)


def reported_step(job: TrainingJob) -> int:
    return int(job.status.get("trainerStatus", {}).get("step", 0))


def is_reported_again(job: TrainingJob) -> None:
    before = reported_step(job)
    kube.wait_until("progress in the status", lambda: reported_step(job) > before, 90)


def is_uninstalled(*kept: str) -> None:
    kube.helm("uninstall", kube.RELEASE, "--wait", "--timeout=3m")

    def left() -> set[str]:
        in_namespace = kube.everything("-n", kube.OPERATOR_NAMESPACE) - OF_EVERY_NAMESPACE - OPERATORS_OWN
        return in_namespace | kube.everything("-A", "-l", INSTANCE) ^ {*kept}

    kube.wait_until(f"nothing is left of the installation: {left()}", lambda: not left(), 60, every_s=2)


def may_list_pods(namespace: Namespace) -> bool:
    question = ("auth", "can-i", "list", "pods", "-n", namespace.name, f"--as={SERVICE_ACCOUNT}", "--quiet")
    try:
        kube.kubectl(*question)
    except AssertionError:
        return False
    return True


def test_the_installation_passes_its_own_test(installation: Any) -> None:
    assert "Phase:          Succeeded" in kube.helm("test", kube.RELEASE, "--timeout=2m")


def test_neither_upgrade_nor_uninstall_disturbs_a_running_job_or_a_suspended_one(
    namespace: Namespace, installation: Any, tmp_path: Path
) -> None:
    suspended = TrainingJob(namespace, a_job("suspended", {"suspend": True}))
    suspended.wait_for("Suspended", 60)
    job = a_long_job(namespace)
    before, waiting, old = workers(job), suspended.found, names_of_operator()
    newer = newer_image(tmp_path)
    assert newer != installation.operator
    kube.install(newer)
    kube.wait_until("no pod of the old installation is left", lambda: not names_of_operator() & old, 60)
    assert images_of_operator() == {newer}
    is_reported_again(job)
    is_uninstalled(*DEFINITIONS)
    trains_on(job)
    kube.install(installation.operator)
    is_reported_again(job)
    assert workers(job) == before
    assert (job.status["attempt"], job.status["restarts"]) == (1, {"job": 0, "inPlace": 0, "disruption": 0})
    assert suspended.found == waiting, "not one write to it"
    assert jobs_of(suspended) == []


def newer_image(directory: Path) -> str:
    """The operator's image with one label more, hence another digest."""
    dockerfile = directory / "Dockerfile"
    dockerfile.write_text("FROM localhost/deepseek-operator:e2e\nLABEL newer=yes\n")
    return kube.cluster("image", "localhost/deepseek-operator:newer", str(dockerfile), str(directory))


def names_of_operator() -> set[str]:
    return {pod["metadata"]["name"] for pod in kube.operator_pods()}


def images_of_operator() -> set[str]:
    return {pod["spec"]["containers"][0]["image"] for pod in kube.operator_pods()}


def test_an_installation_for_one_namespace_serves_and_sees_no_other(namespace: Namespace, installation: Any) -> None:
    other = Namespace(f"{namespace.name}-b")
    try:
        kube.install(installation.operator, f"watchNamespaces={{{namespace.name}}}")
        foreign = TrainingJob(other, a_job("foreign", {"suspend": True}))
        TrainingJob(namespace, a_job("served", {"suspend": True})).wait_for("Suspended", 60)
        assert foreign.status == {}
        assert (may_list_pods(namespace), may_list_pods(other)) == (True, False)
    finally:
        other.delete()


def test_an_uninstall_takes_the_definitions_along_where_they_are_not_to_be_kept(installation: Any) -> None:
    kube.install(installation.operator, "crds.keep=false")
    is_uninstalled()
