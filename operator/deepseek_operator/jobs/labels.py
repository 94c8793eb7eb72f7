"""The labels and annotations that the operator sets on what it makes, and those of others that it copies."""

from collections.abc import Mapping
from typing import Any, Final

from deepseek_operator.api.names import GROUP, OPERATOR
from deepseek_operator.objects.observed import Owner

JOB_NAME: Final = f"{GROUP}/job-name"
JOB_UID: Final = f"{GROUP}/job-uid"  # every selector uses it, so that no later job of the same name matches
ATTEMPT: Final = f"{GROUP}/attempt"  # on worker jobs and pods: 1, 2, ...
CONFIG: Final = f"{GROUP}/config"  # an annotation of pods, the config.json of the trainer
COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"  # on pods, by kube-controller-manager

QUEUE: Final = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"

MAX_DIGITS: Final = 9  # of an attempt or an index


def of_job(owner: Owner) -> dict[str, str]:
    """The labels of every object that is made for the job."""
    return {
        "app.kubernetes.io/name": "deepseek-trainer",
        "app.kubernetes.io/managed-by": OPERATOR,
        "app.kubernetes.io/part-of": owner.name,
        JOB_NAME: owner.name,
        JOB_UID: owner.uid,
    }


def of_queue(job_labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of the training job that its worker job needs for Kueue to admit it."""
    return {label: job_labels[label] for label in (QUEUE, QUEUE_PRIORITY) if label in job_labels}


def attempt_of(manifest: Mapping[str, Any]) -> int:
    """The attempt to which a worker job or pod belongs, or 0 if its label was removed."""
    return _number(manifest["metadata"].get("labels", {}).get(ATTEMPT, "")) or 0


def index_of(pod: Mapping[str, Any]) -> int | None:
    """The index of a pod among the nodes of its attempt, or None if the annotation was removed."""
    return _number(pod["metadata"].get("annotations", {}).get(COMPLETION_INDEX, ""))


def _number(text: str) -> int | None:
    """The number, or None if it is none or too large for the status.  Whoever may edit pods may write anything."""
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None
