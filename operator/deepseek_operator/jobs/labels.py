"""Labels and annotations that the operator puts on what it makes, and those of others that it passes on."""

from collections.abc import Mapping
from typing import Any, Final

from deepseek_operator.api.names import GROUP, OPERATOR
from deepseek_operator.objects.observed import Owner

JOB_NAME: Final = f"{GROUP}/job-name"
JOB_UID: Final = f"{GROUP}/job-uid"  # every selector uses this one: a namesake made later never matches
ATTEMPT: Final = f"{GROUP}/attempt"  # on worker jobs and pods: 1, 2, ...
CONFIG: Final = f"{GROUP}/config"  # annotation of pods: the trainer's config.json
COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"  # on pods, by kube-controller-manager

QUEUE: Final = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"

MAX_DIGITS: Final = 9  # of an attempt or index


def of_job(owner: Owner) -> dict[str, str]:
    """Labels of every object made for the job."""
    return {
        "app.kubernetes.io/name": "deepseek-trainer",
        "app.kubernetes.io/managed-by": OPERATOR,
        "app.kubernetes.io/part-of": owner.name,
        JOB_NAME: owner.name,
        JOB_UID: owner.uid,
    }


def of_queue(job_labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of the training job by which Kueue admits its worker job."""
    return {label: job_labels[label] for label in (QUEUE, QUEUE_PRIORITY) if label in job_labels}


def attempt_of(manifest: Mapping[str, Any]) -> int:
    """Attempt that a worker job or pod belongs to; 0 if its label was removed."""
    return _number(manifest["metadata"].get("labels", {}).get(ATTEMPT, "")) or 0


def index_of(pod: Mapping[str, Any]) -> int | None:
    """Which node of its attempt a pod is; None if that was removed."""
    return _number(pod["metadata"].get("annotations", {}).get(COMPLETION_INDEX, ""))


def _number(text: str) -> int | None:
    """None, too, for one that no field of the status has room for: who may edit pods may write anything there."""
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None
