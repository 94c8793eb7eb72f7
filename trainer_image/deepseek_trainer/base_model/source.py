"""The base model: checked against its digest, brought into one form, kept in the job's vault.

Prepared once per job, by the init container of node 0; each rank and restart then loads it in
seconds.  Without torch, whose import takes longer than most conversions.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from deepseek_trainer.base_model import gguf_model
from deepseek_trainer.base_model.digest import digest_of, file_digests, listing_digest
from deepseek_trainer.base_model.directory import CONFIG, checked_directory, refuse_other_file
from deepseek_trainer.base_model.examination import refuse_unfit_tokenizer
from deepseek_trainer.base_model.families import read_dimensions, scratch_dimensions
from deepseek_trainer.base_model.gguf_file import GgufFile, GgufTensor, open_gguf
from deepseek_trainer.base_model.guard import place, understood
from deepseek_trainer.base_model.headers import refuse_other_weights
from deepseek_trainer.base_model.kept import GENERATION, kept_files
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.base_model.stand_ins import refuse_stand_ins
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.foreign import file_name
from deepseek_trainer.contract.model import BaseModelSource
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.storage.commit import committed
from deepseek_trainer.storage.opening import opened
from deepseek_trainer.storage.tensorfile import Entry, stream
from deepseek_trainer.storage.vault import Vault

SOURCE: Final = "source.json"  # where it came from, its digest, its weight files
FORMAT: Final = "dstj-model/1"
_CHUNK = 16 << 20  # [bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """What source.json says of a prepared model."""

    sha256: str
    claim_name: str
    path: str
    weights: tuple[str, ...]  # names of its safetensors files
    kept: tuple[str, ...] = ()  # names of files that a result carries on


def prepare_model(config: TrainingConfig, paths: Paths, vault: Vault) -> Path:
    """The directory of the prepared base model, made now unless an earlier attempt has done so.

    Raises ConfigError where the model is missing, of a kind that cannot be trained, or not as the job wants to
    train it, IntegrityError where it is not the one that the job names by digest.
    """
    base = _base(config)
    with understood(paths.claim(base.claim_name, base.path)):
        source, target = Place.find(base, paths), prepared_model(config, paths, vault)
        if target.exists():
            refuse_misfit(config, prepared_settings(target, vault))
            return target
        with committed(target) as directory:
            write = _prepare_directory if source.path.is_dir() else _prepare_gguf
            write(source, config, directory, vault)
    return target


def dimensions_of(config: TrainingConfig, paths: Paths, vault: Vault) -> Dimensions | None:
    """Of the model from scratch, or of the prepared base; None for one of images, of which they are not known."""
    if config.data.images is not None:
        return None
    if config.model.architecture is not None:
        return scratch_dimensions(config.model.architecture)
    with understood(f"the base model's {CONFIG}"):
        return read_dimensions(prepared_settings(prepared_model(config, paths, vault), vault))


def prepared_model(config: TrainingConfig, paths: Paths, vault: Vault) -> Path:
    """Where the prepared base model is, or will be.

    Named after what a `stat` of the source tells (name, size, time of change), so that no rank reads
    the whole source to find it; what was written there was verified.
    """
    base = _base(config)
    source = Place.find(base, paths).path
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    facts = [FORMAT, str(config.job), config.seals_data, base.model_dump(mode="json")]
    facts += [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(json_text(facts).encode()).hexdigest()[:32]
    return paths.prepared / f"model-{vault.name_of(digest)}"


def source_model(source: Place) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Content of config.json and of the tokenizer's files of a base model as it lies on its claim, unverified."""
    with understood(source.path):
        if source.path.is_dir():
            config, tokenizer, _ = checked_directory(source)
            return config, tokenizer
        _, config, tokenizer = _checked_gguf(source)
        return config, tokenizer


def _checked_gguf(source: Place) -> tuple[GgufFile, dict[str, Any], dict[str, bytes]]:
    """The file, and what it means as configuration and tokenizer of a model that can be trained."""
    refuse_other_file(source.path)
    refuse_stand_ins(source.path.parent, [source.path.name], source.claim)
    gguf = open_gguf(source.path, source.claim)
    config = gguf_model.model_config(gguf)
    found = {name: (source.path.name, tensor.shape) for name, tensor in gguf_model.weights(gguf)}
    tokenizer = gguf_model.tokenizer_files(gguf)
    refuse_unfit_tokenizer(tokenizer, config, source.path)
    refuse_other_weights(source.path, found, config)
    return gguf, config, tokenizer


def read_source(directory: Path, vault: Vault) -> Source:
    """Where a prepared model came from."""
    return vault.document(
        directory / SOURCE,
        lambda facts: Source(
            facts["sha256"],
            facts["claimName"],
            facts["path"],
            tuple(file_name(name) for name in facts["weights"]),
            tuple(file_name(name) for name in facts.get("kept", ())),
        ),
    )


def generation_settings(directory: Path, vault: Vault) -> dict[str, Any]:
    """How a prepared model says that texts are written with it; empty where it says nothing."""
    if GENERATION not in read_source(directory, vault).kept:
        return {}
    settings: dict[str, Any] = vault.document(directory / GENERATION, dict)
    return settings


def base_digest(config: TrainingConfig, paths: Paths, vault: Vault) -> str | None:
    """SHA-256 of what the prepared base model was made from; None from scratch."""
    return None if config.model.base is None else read_source(prepared_model(config, paths, vault), vault).sha256


def prepared_settings(directory: Path, vault: Vault) -> dict[str, Any]:
    """The content of a prepared model's config.json."""
    settings: dict[str, Any] = vault.document(directory / CONFIG, dict)
    return settings


def _base(config: TrainingConfig) -> BaseModelSource:
    assert config.model.base is not None, "a model from scratch has no source"
    return config.model.base


def _prepare_gguf(source: Place, job: TrainingConfig, directory: Path, vault: Vault) -> None:
    refuse_other_file(source.path)
    base = _base(job)
    digest = _verified(base, digest_of(source.path, source.claim), vault)
    gguf, config, tokenizer = _checked_gguf(source)
    refuse_misfit(job, config)
    vault.write(directory / "model.safetensors", stream(_entries(gguf, config)))
    _finish(directory, vault, config, tokenizer, Source(digest, base.claim_name, base.path, ("model.safetensors",)))


def _prepare_directory(source: Place, job: TrainingConfig, directory: Path, vault: Vault) -> None:
    base = _base(job)
    config, tokenizer, weights = checked_directory(source)
    refuse_misfit(job, config)
    digests = file_digests(source.path, source.claim)
    digest = _verified(base, listing_digest(digests), vault)
    kept = kept_files(source)
    for name in weights:
        vault.write(directory / name, _same_bytes(source, name, digests[name]))
    origin = Source(digest, base.claim_name, base.path, weights, tuple(kept))
    _finish(directory, vault, config, tokenizer | kept, origin)


def _finish(
    directory: Path, vault: Vault, config: Mapping[str, Any], others: Mapping[str, bytes], source: Source
) -> None:
    facts = {
        "format": FORMAT,
        "sha256": source.sha256,
        "claimName": source.claim_name,
        "path": source.path,
        "weights": source.weights,
        "kept": source.kept,
    }
    small = {CONFIG: json_text(config).encode(), SOURCE: json_text(facts).encode(), **others}
    for name, content in small.items():
        vault.write(directory / name, content)


def _verified(base: BaseModelSource, actual: str, vault: Vault) -> str:
    if base.sha256 not in (None, actual):
        found = "another one" if vault.sealed else actual
        raise IntegrityError(
            f"model.base {base.claim_name}/{base.path}: SHA-256 is {found}, the job expects {base.sha256}",
            hint="the file is not the one that was approved, or model.base.sha256 is out of date",
        )
    return actual


def _same_bytes(source: Place, name: str, digest: str) -> Iterator[bytes]:
    """The file in pieces; raises IntegrityError at the end if it is not what was verified a moment ago."""
    seen = hashlib.sha256()
    path = source.path / name
    with opened(path, below=source.claim) as file:
        while chunk := file.read(_CHUNK):
            seen.update(chunk)
            yield chunk
    if seen.hexdigest() != digest:
        raise IntegrityError(
            f"{place(path)} was changed while it was read", hint="nobody may write to the claim during a run"
        )


def _entries(gguf: GgufFile, config: Mapping[str, Any]) -> list[Entry]:
    """The weights in fp32, each de-quantised when it is written."""
    return [
        Entry(name, "F32", tensor.shape, partial(_values, tensor, config)) for name, tensor in gguf_model.weights(gguf)
    ]


def _values(tensor: GgufTensor, config: Mapping[str, Any]) -> memoryview:
    return np.ascontiguousarray(gguf_model.values(tensor, config)).reshape(-1).view(np.uint8).data
