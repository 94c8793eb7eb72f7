"""What Argo CD and Flux make of the status: Argo CD by the Lua of docs/gitops/, Flux by the rules of kstatus."""

from pathlib import Path
from typing import Any

import pytest
from lupa import lua51  # the dialect of Argo CD's interpreter

from deepseek_operator.jobs.outcome import Outcome, plan_with
from deepseek_operator.jobs.status import JobStatus, Phase
from support.builders.operator import NOW, a_job, a_training_job

HEALTH = (Path(__file__).resolve().parents[3] / "docs" / "gitops" / "argocd-health.lua").read_text()
READINGS = {
    Phase.PENDING: ("Progressing", "InProgress"),
    Phase.QUEUED: ("Progressing", "InProgress"),
    Phase.STARTING: ("Progressing", "InProgress"),
    Phase.RUNNING: ("Healthy", "Current"),
    Phase.RESTARTING: ("Progressing", "InProgress"),
    Phase.SUSPENDING: ("Progressing", "InProgress"),
    Phase.SUSPENDED: ("Suspended", "Current"),
    Phase.SUCCEEDED: ("Healthy", "Current"),
    Phase.FAILED: ("Degraded", "Failed"),
}


def seen(phase: Phase, *, accepted: bool = True, generation: int = 1) -> dict[str, Any]:
    """The job as the API server gives it, after a pass that found `phase`."""
    outcome = Outcome(phase, "SomeReason", "what is going on", accepted=accepted)
    plan = plan_with(outcome, a_job(generation=1), JobStatus(), NOW)
    return a_training_job(status=plan.status, generation=generation)


def in_argo_cd(manifest: dict[str, Any]) -> dict[str, str]:
    lua = lua51.LuaRuntime(unpack_returned_tuples=True)
    lua.globals()["obj"] = lua.table_from(manifest, recursive=True)
    return dict(lua.execute(HEALTH))


def in_kstatus(manifest: dict[str, Any]) -> str:
    """sigs.k8s.io/cli-utils, pkg/kstatus/status/generic.go: conditions that any kind may have, in this order."""
    status = manifest.get("status", {})
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
    if "observedGeneration" in status and status["observedGeneration"] != manifest["metadata"]["generation"]:
        return "InProgress"
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "InProgress" if conditions.get("Ready") in {"False", "Unknown"} else "Current"


def test_every_phase_has_a_reading() -> None:
    assert set(READINGS) == set(Phase)


@pytest.mark.parametrize(("phase", "readings"), READINGS.items())
def test_a_phase_is_read_alike_by_argo_cd_and_flux(phase: Phase, readings: tuple[str, str]) -> None:
    manifest = seen(phase)
    assert (in_argo_cd(manifest)["status"], in_kstatus(manifest)) == readings
    assert in_argo_cd(manifest)["message"] == f"{phase}: what is going on"


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.RESTARTING])
def test_a_job_that_needs_a_person_is_degraded(phase: Phase) -> None:
    manifest = seen(phase, accepted=False)
    assert (in_argo_cd(manifest)["status"], in_kstatus(manifest)) == ("Degraded", "Failed")


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.FAILED])
def test_a_newer_spec_makes_the_status_old(phase: Phase) -> None:
    manifest = seen(phase, generation=2)
    assert (in_argo_cd(manifest)["status"], in_kstatus(manifest)) == ("Progressing", "InProgress")


def test_a_job_that_no_operator_has_seen_is_in_progress_for_argo_cd_only() -> None:
    unseen = {"status": "Progressing", "message": "the operator has not seen this version yet"}
    assert (in_argo_cd(a_training_job()), in_kstatus(a_training_job())) == (unseen, "Current")
