"""What people and pipelines see of the API on a real API server: columns, explanations, refusals, events, no drift.

No pod starts here: jobs are suspended, or not created at all (server-side dry run).
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from deepseek_operator import crd
from deepseek_operator.api.names import API_VERSION, PROFILE_PLURAL
from support.builders.operator import a_profile_manifest, merged
from support.cluster import kube
from support.cluster.api import path_of
from support.cluster.kube import Manifest, Namespace, TrainingJob, a_job
from support.samples import profiles
from support.samples.api import BOUNDS, IMMUTABLE, MUTABLE, NAMES, RULES

KINDS = {"dstj": crd.training_job_crd(), "trainingprofile": crd.profile_crd()}
SUSPENDED = {"suspend": True}
FILES = [file.stem for file in sorted((kube.ROOT / "examples").glob("*.yaml")) if "profile" not in file.stem]


def a_suspended_job(team: Namespace, name: str, **meta: Any) -> TrainingJob:
    job = TrainingJob(team, a_job(name, SUSPENDED, **meta))
    job.wait_for("Suspended", 20)
    return job


def place_of(outside: Any, inside: Any, path: str = "spec") -> str:
    """Path of the first leaf of `outside` that `inside` does not have so, as the API server writes it."""
    if isinstance(outside, dict):
        known = inside if isinstance(inside, dict) else {}
        key = next(key for key in outside if key not in known or outside[key] != known[key])
        return place_of(outside[key], known.get(key), f"{path}.{key}")
    if isinstance(outside, list) and outside and isinstance(outside[0], dict):
        return place_of(outside[0], inside[0], f"{path}[0]")
    return path


def objects(schema: Manifest, path: str) -> Iterator[tuple[str, Manifest]]:
    """Every object with fields of its own in `schema`, and where `kubectl explain` has it."""
    if "properties" in schema:
        yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from objects(field.get("items", field), f"{path}.{name}")


def test_columns_show_how_far_a_job_is(team: Namespace) -> None:
    a_suspended_job(team, "columns", labels={"kueue.x-k8s.io/queue-name": "team-a"})
    progress = {"step": 7, "metrics": [{"name": "grad_norm", "value": "0.5"}, {"name": "loss", "value": "1.25"}]}
    patch = json.dumps({"status": {"trainerStatus": progress}})
    team.kubectl("patch", "dstj/columns", "--subresource=status", "--type=merge", "-p", patch)
    narrow, wide = (team.kubectl("get", "dstj", "columns", *more).split("\n") for more in ((), ("-o", "wide")))
    assert narrow[0].split() == ["NAME", "PHASE", "NODES", "READY", "STEP", "ATTEMPT", "AGE"]
    assert narrow[1].split()[:-1] == ["columns", "Suspended", "2", "0", "7", "0"]
    assert wide[0].split() == ["NAME", "PHASE", "NODES", "READY", "STEP", "ATTEMPT", "LOSS", "QUEUE", "REASON", "AGE"]
    assert wide[1].split()[5:-1] == ["0", "1.25", "team-a", "SuspendRequested"]


def test_jobs_are_listed_among_all_and_by_phase(team: Namespace) -> None:
    a_suspended_job(team, "listed")
    assert "deepseektrainingjob.training.dstj.io/listed" in team.kubectl("get", "all", "-o", "name")
    by_phase = ("get", "dstj", "-o", "name", "--field-selector")
    assert "/listed" in team.kubectl(*by_phase, "status.phase=Suspended")
    assert "/listed" not in team.kubectl(*by_phase, "status.phase=Running")


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("kind", KINDS)
def test_kubectl_explains_every_field_of_the_spec(kind: str) -> None:
    root = KINDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, schema in objects(root["properties"]["spec"], f"{kind}.spec"):
        told = " ".join(kube.kubectl("explain", path).split())
        for name, field in schema["properties"].items():
            assert f" {name} <" in told, f"{path}.{name}"
            assert " ".join(field["description"].split()) in told, f"{path}.{name}"


@pytest.mark.parametrize("wanted", ["condition=Accepted", "condition=Suspended", "condition=Ready"])
def test_scripts_can_wait_for_a_condition(team: Namespace, wanted: str) -> None:
    name = f"waits-{wanted.partition('=')[2].lower()}"
    TrainingJob(team, a_job(name, SUSPENDED))
    assert "condition met" in team.kubectl("wait", f"dstj/{name}", f"--for={wanted}", "--timeout=20s")


def test_scripts_can_wait_for_a_phase(team: Namespace) -> None:
    TrainingJob(team, a_job("waits", SUSPENDED))
    phase = "jsonpath={.status.phase}=Suspended"
    assert "condition met" in team.kubectl("wait", "dstj/waits", f"--for={phase}", "--timeout=20s")


def test_events_tell_the_story_of_a_job(team: Namespace) -> None:
    a_suspended_job(team, "story")

    def told() -> bool:
        return "there are no pods; set suspend: false" in team.kubectl("events", "--for=dstj/story")

    kube.wait_until("the event about the suspension", told, 10)


@pytest.mark.parametrize(("message", "holds", "breaks"), RULES)
def test_a_dry_run_names_the_rule_that_a_job_breaks(
    team: Namespace, message: str, holds: Manifest, breaks: Manifest
) -> None:
    assert team.refusal(a_job("dry", holds)) == ""
    assert message in team.refusal(a_job("dry", breaks))


@pytest.mark.parametrize(("inside", "outside"), BOUNDS)
def test_a_dry_run_names_the_field_that_is_out_of_bounds(team: Namespace, inside: Manifest, outside: Manifest) -> None:
    assert team.refusal(a_job("dry", inside)) == ""
    assert place_of(outside, inside) in team.refusal(a_job("dry", outside))


def profile_refusal(changes: Manifest) -> str:
    """What the API server says against a profile that it only tries to create; '' where it says nothing."""
    manifest = a_profile_manifest("dry", **changes)
    path = f"/apis/{API_VERSION}/{PROFILE_PLURAL}?dryRun=All&fieldValidation=Strict"
    status, answer = kube.server().answer("POST", path, json.dumps(manifest))
    return "" if status == 201 else str(json.loads(answer)["message"])


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("message", "holds", "breaks"), profiles.RULES)
def test_a_dry_run_names_the_rule_that_a_profile_breaks(message: str, holds: Manifest, breaks: Manifest) -> None:
    assert profile_refusal(holds) == ""
    assert message in profile_refusal(breaks)


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("inside", "outside"), profiles.BOUNDS)
def test_a_dry_run_names_the_field_of_a_profile_that_is_out_of_bounds(inside: Manifest, outside: Manifest) -> None:
    assert profile_refusal(inside) == ""
    assert f"spec.{next(iter(outside))}" in profile_refusal(outside)


def test_a_job_has_no_scale_that_would_be_refused(team: Namespace) -> None:
    a_suspended_job(team, "unscaled")
    path = path_of(team.name, "deepseektrainingjobs", "unscaled")
    assert [kube.server().answer("GET", f"{path}{part}")[0] for part in ("/status", "/scale")] == [200, 404]


@pytest.mark.parametrize(("name", "is_good"), NAMES)
def test_a_dry_run_knows_which_names_fit_into_host_names(team: Namespace, name: str, is_good: bool) -> None:
    if is_good:
        assert team.refusal(a_job(name, {})) == ""
    else:
        assert "metadata.name" in team.refusal(a_job(name, {}))


def test_a_job_that_exists_changes_only_in_what_steers_it(team: Namespace) -> None:
    a_suspended_job(team, "fixed")
    patch = ("-n", team.name, "patch", "dstj/fixed", "--dry-run=server", "--type=merge", "-p")
    for field, change in IMMUTABLE.items():
        assert f"{field} is immutable" in kube.refused(*patch, json.dumps({"spec": {field: change}}))
    kube.kubectl(*patch, json.dumps({"spec": MUTABLE}))


@pytest.mark.parametrize("file", FILES)
def test_the_same_file_again_is_no_change(team: Namespace, file: str) -> None:
    job = TrainingJob(team, kube.example(file, **SUSPENDED))
    job.wait_for("Suspended", 20)
    settled = kube.wait_until("the job has settled", lambda: quiet(job), 20)
    team.apply(job.manifest)
    assert job.found == settled
    team.kubectl("diff", "--server-side", "--field-manager=e2e", "-f", "-", input=yaml.safe_dump(job.manifest))


@pytest.mark.parametrize("file", FILES)
def test_the_same_file_again_is_no_change_for_client_side_apply(team: Namespace, file: str) -> None:
    manifest = yaml.safe_dump(merged(kube.example(file, **SUSPENDED), {"metadata": {"name": f"{file}-client"}}))
    team.kubectl("apply", "-f", "-", input=manifest)
    team.kubectl("wait", f"dstj/{file}-client", "--for=condition=Suspended", "--timeout=20s")
    team.kubectl("diff", "-f", "-", input=manifest)
    assert team.kubectl("apply", "-f", "-", input=manifest).endswith("unchanged\n")


def quiet(job: TrainingJob) -> Manifest | None:
    """The job, once two looks in a row see the same."""
    before = job.found
    return before if job.found == before else None


def test_the_cluster_starts_although_somebody_has_edited_its_objects() -> None:
    default = "storageclass.kubernetes.io/is-default-class"
    kube.kubectl("annotate", "--overwrite", "storageclass/local", f"{default}=false")
    kube.cluster("up")
    found = json.loads(kube.kubectl("get", "storageclass/local", "-o", "json"))
    assert found["metadata"]["annotations"][default] == "true"
