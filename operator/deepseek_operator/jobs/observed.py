"""The world around one training job, as one pass sees it.  It is a plain frozen value and holds no client."""

from dataclasses import dataclass

from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.objects.observed import Manifest, WarningEvent
from deepseek_trainer.contract.progress import Progress


@dataclass(frozen=True, slots=True)
class Observed:
    worker_jobs: tuple[Manifest, ...] = ()  # of every attempt
    pods: tuple[Manifest, ...] = ()  # of every attempt
    departed: tuple[Manifest, ...] = ()  # deleted pods, in their last state
    progress: Progress | None = None  # of node 0 of the current attempt; None: it does not answer
    warnings: tuple[WarningEvent, ...] = ()  # read only while a pod of the attempt is not ready
    isolated: bool | None = False  # whether the job's NetworkPolicy exists; None: not looked at without a worker job
    quotas: tuple[Manifest, ...] = ()  # of the namespace; read only until the worker job of the attempt exists
    limit_ranges: tuple[Manifest, ...] = ()  # of the namespace; read only beside quotas
    default_priority: str | None = None  # the PriorityClass of pods that name none; read only if a quota asks for it
    profile: ProfileSpec | None = None  # the job's TrainingProfile; None: there is none, or it breaks a rule
    profile_problem: str = ""  # the rule that it breaks
    leftovers: tuple[str, ...] = ()  # worker jobs and pods of a deleted job of the same name, as `Pod demo-a1-0-x7x2k`
