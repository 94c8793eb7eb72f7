"""Training jobs as a kind.  The controller serves them by what `JOBS` holds."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from deepseek_operator.api.names import KIND, PLURAL
from deepseek_operator.jobs import labels
from deepseek_operator.jobs.decide import decide, failing, invalid, refused
from deepseek_operator.jobs.finish import finished, finished_with_pods, leaving
from deepseek_operator.jobs.look import POD, POLICY, WORKER_JOB, Live, look
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.outcome import JobPlan
from deepseek_operator.jobs.status import JobStatus
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.objects.kind import Kind, OwnerLabels, Reads
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.settings import Settings


async def _look(job: TrainingJob, reads: Reads, settings: Settings, now: datetime) -> Observed | None:
    return await look(job, Live(reads, settings, now))


async def _recall(
    job: TrainingJob, reads: Reads, settings: Settings, now: datetime, known: Sequence[Manifest]
) -> Observed | None:
    return await look(job, Live(reads, settings, now, known=known))


def _decide(job: TrainingJob, observed: Observed | None, settings: Settings, now: datetime) -> JobPlan:
    if observed is not None and job.holders:
        return leaving(job, observed, settings, now)
    if observed is not None and job.status.is_finished:
        return finished_with_pods(job, observed, settings, now)
    if observed is not None:
        return decide(job, observed, settings, now)
    return finished(job, now) if job.status.is_finished else invalid(job, now)


JOBS: Final[Kind[TrainingJob, Observed | None, JobStatus]] = Kind(
    name=KIND,
    plural=PLURAL,
    labels=OwnerLabels(labels.JOB_NAME, labels.JOB_UID),
    children=(WORKER_JOB, POD, POLICY),
    outlive=frozenset({"PersistentVolumeClaim"}),
    keeps=lambda child: labels.index_of(child) == 0,  # the pod of node 0 holds the last progress of its attempt
    read=TrainingJob.read,
    look=_look,
    recall=_recall,
    decide=_decide,
    refused=refused,
    failing=failing,
)
