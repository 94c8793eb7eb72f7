"""The world around one training job, as one pass sees it: a plain frozen value, no client."""

from dataclasses import dataclass

from deepseek_operator.jobs.spec import ProfileSpec
from deepseek_operator.objects.observed import Manifest, WarningEvent
from deepseek_trainer.contract.progress import Progress


@dataclass(frozen=True, slots=True)
class Observed:
    worker_jobs: tuple[Manifest, ...] = ()  # of every attempt
    pods: tuple[Manifest, ...] = ()  # of every attempt
    departed: tuple[Manifest, ...] = ()  # pods that were deleted, as they last were
    progress: Progress | None = None  # of node 0 of the current attempt; None: not answering
    warnings: tuple[WarningEvent, ...] = ()  # read only while a pod of the attempt is not ready
    isolated: bool | None = False  # the job's NetworkPolicy is there; None: not looked at, there is no worker job
    quotas: tuple[Manifest, ...] = ()  # of the namespace; read only while there is no worker job of the attempt
    profile: ProfileSpec | None = None  # the job's TrainingProfile, unless it breaks a rule
    profile_problem: str = ""  # the rule that it breaks
    leftovers: tuple[str, ...] = ()  # worker jobs and pods of a namesake that was deleted, `Pod demo-a1-0-x7x2k`
