"""Does an API server's work for one job in one file: keeps it, counts its generations, refuses forbidden changes."""

import io
from collections.abc import Iterable
from typing import Any, Final, TextIO
from uuid import uuid4

import yaml
from pydantic.alias_generators import to_camel

from deepseek_operator.jobs.spec import IMMUTABLE, JobSpec
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.contract.times import utc_now
from deepseek_trainer.storage.durable import replace_file
from deepseek_trainer.storage.opening import content_of
from deepseek_trainer.training.horizon import EPOCHS
from dstj.jobfile import MAX_BYTES, Job
from dstj.local.home import JobHome
from dstj.local.kubelet import Manifest

LENGTHS: Final = ("max_steps", "epochs", "max_minutes")


def stored(home: JobHome) -> Manifest | None:
    """The job as the last run left it; None if it was never run."""
    try:
        text = content_of(home.status_file, max_bytes=MAX_BYTES, refusal=IntegrityError).decode()
        content: Any = yaml.load(text, yaml.CSafeLoader)
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict) or not {"metadata", "spec", "status"} <= content.keys():
        hint = f"rm {home.status_file} forgets the last run and keeps its checkpoints"
        raise IntegrityError(f"{home.status_file}: this is not what dstj wrote", hint=hint)
    return content


def store(home: JobHome, manifest: Manifest) -> None:
    """Replace status.yaml.  A reader sees the old or the new file, and a crash leaves one of them."""
    home.directory.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    write_yaml([manifest], text)
    replace_file(home.status_file, text.getvalue().encode())


class _Dumper(yaml.CSafeDumper):
    """Writes every value out, even one that occurs twice: kubectl reads YAML's anchors, people do not."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def write_yaml(manifests: Iterable[Manifest], file: TextIO) -> None:
    """Write what YAML itself leaves as it is, such as letters that are written from right to left, as escapes."""
    manifests = list(manifests)
    text = yaml.dump_all(manifests, None, _Dumper, sort_keys=False, allow_unicode=True)
    if not text.replace("\n", "").isprintable():
        text = yaml.dump_all(manifests, None, _Dumper, sort_keys=False)
    file.write(text)


def admitted(job: Job, old: Manifest | None) -> Manifest:
    """`job` as the API server would store it over `old`.  Raises ConfigError for a change that it would refuse.

    A job that only goes on for longer is a new one, as if `old` had been deleted: it goes on from its checkpoints.
    """
    meta = {key: value for key, value in job.manifest["metadata"].items() if key in ("labels", "annotations")}
    identity = {"name": job.name, "namespace": job.namespace}
    if old is None or lengthened(job, old):
        now = utc_now()
        made = {"uid": str(uuid4()), "generation": 1, "creationTimestamp": now}
        return job.manifest | {"metadata": identity | made | meta, "status": {}}
    _refuse_changes(job, old)
    before = old["metadata"]
    generation = before["generation"] + (job.manifest["spec"] != old["spec"])
    kept = {"uid": before["uid"], "generation": generation, "creationTimestamp": before["creationTimestamp"]}
    return job.manifest | {"metadata": identity | kept | meta, "status": old["status"]}


def lengthened(job: Job, old: Manifest) -> str:
    """What makes the job longer than it was, if nothing else of what cannot change has; else empty."""
    before, now = JobSpec.model_validate(old["spec"]).optimization, job.spec.optimization
    lengths = [
        (name, mine, theirs) for name in LENGTHS if (mine := _length(now, name)) != (theirs := _length(before, name))
    ]
    same = before.model_copy(update={name: getattr(now, name) for name in LENGTHS}) == now
    if not (lengths and same and _changed(job, old) == ["spec.optimization"]):
        return ""
    if job.spec.checkpoint.resume_from != "Latest" or any(mine <= theirs for _, mine, theirs in lengths):
        return ""
    return ", ".join(f"optimization.{to_camel(name)}: {mine:g} instead of {theirs:g}" for name, mine, theirs in lengths)


def _length(optimization: OptimizationSpec, name: str) -> float:
    """So many steps, epochs or minutes; 0 where the others decide."""
    if name == "epochs" and optimization.max_steps is None and optimization.max_minutes is None:
        return optimization.epochs or EPOCHS
    return float(getattr(optimization, name) or 0)


def _changed(job: Job, old: Manifest) -> list[str]:
    """What differs of all that cannot change."""
    before = JobSpec.model_validate(old["spec"])
    changed = [f"spec.{field}" for field in IMMUTABLE if getattr(job.spec, field) != getattr(before, field)]
    return ["metadata.namespace", *changed] if job.namespace != old["metadata"]["namespace"] else changed


def _refuse_changes(job: Job, old: Manifest) -> None:
    if changed := _changed(job, old):
        raise ConfigError(
            f"{job.path}: {', '.join(changed)} changed since {job.name} was first run, and cannot change any more",
            hint="raise optimization.maxSteps, epochs or maxMinutes alone to go on for longer; give the job another "
            "name; or set checkpoint.resumeFrom, to None to start over or to a step to go on "
            f"from it, and dstj run {job.path} --recreate",
        )
