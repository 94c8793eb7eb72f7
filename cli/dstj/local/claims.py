"""Finds what stands for a claim, a secret or an identity on a machine without a cluster."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepseek_operator.jobs.blueprint import child_name
from deepseek_operator.jobs.spec import JobSpec
from deepseek_operator.objects.observed import Owner
from deepseek_trainer.contract.errors import ConfigError
from dstj.jobfile import Job
from dstj.local.home import Home
from dstj.local.key_server import KeyServer, key_server


@dataclass(frozen=True, slots=True)
class Sources:
    """What the pods of a job mount: a directory for each claim and each secret, or what reaches a key server."""

    claims: Mapping[str, Path]
    secrets: Mapping[str, Path]
    key_server: KeyServer | None = None


def sources(job: Job, home: Home, volumes: Iterable[str] = (), vault_token: str | None = None) -> Sources:
    """Everything that `job` mounts.  Raises ConfigError for what is missing, with the places that were searched."""
    given = _given(volumes)
    mounted = input_claims(job.spec)
    existing = job.spec.checkpoint.volume.claim_name
    names = {*mounted, existing} if existing else set(mounted)
    for name in given.keys() - names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"claims of the job: {', '.join(sorted(names)) or 'none'}"
        raise ConfigError(f"--volume {name}={given[name]}: the job has no such claim", hint=hint)
    claims = {name: given.get(name) or claim_directory(name, job.path, home) for name in sorted(names)}
    made = child_name(Owner(job.namespace, job.name, ""))
    server = key_server(job.spec, home, vault_token)
    return Sources({made: home.job(job.name).paths.work} | claims, _secrets(job.spec, home), server)


def claims_at_hand(job: Job, home: Home, volumes: Iterable[str] = ()) -> dict[str, Path]:
    """The directories of the claims that hold data and model, as far as they are here."""
    found = _given(volumes)
    for name in input_claims(job.spec):
        if name not in found and (place := _beside(name, job.path, home)):
            found[name] = place
    return found


def input_claims(spec: JobSpec) -> tuple[str, ...]:
    """The claims that hold the data, the base model and its adapter."""
    places = (*spec.model.places, *spec.data.places)
    return tuple(dict.fromkeys(place.claim_name for place in places if place))


def claim_directory(name: str, job_file: Path, home: Home) -> Path:
    """The directory of a claim for which --volume gives none."""
    if place := _beside(name, job_file, home):
        return place
    places = _places(name, job_file, home)
    raise ConfigError(
        f"no directory for the claim {name}: looked at {places[0]} and {places[1]}, and no --volume names it",
        hint=f"dstj run {job_file} --volume {name}=DIR",
    )


def _places(name: str, job_file: Path, home: Home) -> tuple[Path, Path]:
    return job_file.absolute().parent / name, home.volume(name)


def _beside(name: str, job_file: Path, home: Home) -> Path | None:
    return next((place for place in _places(name, job_file, home) if place.is_dir()), None)


def _given(volumes: Iterable[str]) -> dict[str, Path]:
    given = {}
    for text in volumes:
        name, equals, directory = text.partition("=")
        if not (name and equals and directory):
            raise ConfigError(f"--volume {text}: must be CLAIM=DIR", hint="for example --volume corpus=/data/corpus")
        if not Path(directory).is_dir():
            raise ConfigError(f"--volume {text}: {directory} is not a directory", hint="name an existing directory")
        given[name] = Path(directory).absolute()
    return given


def _secrets(spec: JobSpec, home: Home) -> dict[str, Path]:
    encryption = spec.checkpoint.encryption
    if encryption is None or encryption.key_ref.secret_name is None:
        return {}
    ref, secret = encryption.key_ref, encryption.key_ref.secret_name
    file = home.secret(secret) / ref.key
    if not file.is_file():
        option = "" if ref.key == "kek" else f" --key {ref.key}"
        raise ConfigError(
            f"no key {file}, which spec.checkpoint.encryption.keyRef names",
            hint=f"dstj keys generate --secret {secret}{option}",
        )
    return {secret: file.parent}
