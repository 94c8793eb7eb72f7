"""`dstj validate` and `dstj render`: check a job file, or print its objects, without running it."""

import sys
from argparse import Namespace
from pathlib import Path

from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.manifests import children
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.objects.observed import Owner
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import named
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from dstj.jobfile import Job, checked, load_job
from dstj.local.store import write_yaml
from dstj.screen.errors import print_error


def validate(arguments: Namespace) -> int:
    """Check every file, even after a bad one."""
    code = ExitCode.DONE
    for file in checked(Path(name) for name in arguments.files):
        for error in file.errors:
            print_error(error.problem, error.hint)
            code = ExitCode.CONFIG
        if not file.errors:
            say(f"{file.path}: ok")
    return code


def render(arguments: Namespace) -> int:
    """Print the objects of one attempt, in the order in which the operator applies them."""
    job = load_job(Path(arguments.file), *([Path(arguments.profile)] if arguments.profile else []))
    blueprint = Blueprint(
        job.spec,
        Owner(job.namespace, job.name, arguments.uid),
        _profile(job),
        Settings(),
        attempt=arguments.attempt,
        job_labels=job.manifest["metadata"].get("labels") or {},
        makes_claim=arguments.attempt == 1,
    )
    write_yaml(children(blueprint), sys.stdout)
    return ExitCode.DONE


def _profile(job: Job) -> ProfileSpec | None:
    name = job.spec.trainer.profile
    if name is None:
        return None
    if name not in job.profiles:
        given = ", ".join(job.profiles) or "none"
        raise ConfigError(
            f"{job.path}: spec.trainer.profile: {named(name)} is in no file given (profiles there: {given})",
            hint=f"dstj render {job.path} --profile FILE; kubectl get trainingprofile {name} -o yaml gives one",
        )
    return ProfileSpec.model_validate(job.profiles[name]["spec"])
