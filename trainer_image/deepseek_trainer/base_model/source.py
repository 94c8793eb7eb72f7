"""The base model: checked against its digest, brought into one form, kept in the job's vault.

Prepared once per job, by the init container of node 0; each rank and restart then loads it in
seconds.  Without torch, whose import takes longer than most conversions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from deepseek_trainer.base_model import gguf_model
from deepseek_trainer.base_model.adapter import read_adapter
from deepseek_trainer.base_model.copying import bytes_of
from deepseek_trainer.base_model.decoder import Shape
from deepseek_trainer.base_model.digest import digest_of, file_digests, listing_digest
from deepseek_trainer.base_model.directory import CONFIG, checked_directory, refuse_other_file
from deepseek_trainer.base_model.examination import refuse_unfit_tokenizer
from deepseek_trainer.base_model.families import family_of, read_dimensions, scratch_dimensions
from deepseek_trainer.base_model.gguf_file import GgufFile, GgufTensor, open_gguf
from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.base_model.headers import full_names, refuse_other_weights, weights_in
from deepseek_trainer.base_model.kept import GENERATION, kept_files
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.base_model.stand_ins import refuse_stand_ins
from deepseek_trainer.base_model.updates import Update, updated
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.foreign import file_name, word
from deepseek_trainer.contract.model import BaseModelSource
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.storage.commit import committed
from deepseek_trainer.storage.tensorfile import Entry, View, stream
from deepseek_trainer.storage.vault import Vault

SOURCE: Final = "source.json"  # where it came from, its digest, its weight files
FORMAT: Final = "dstj-model/1"


@dataclass(frozen=True, slots=True)
class Source:
    """What source.json says of a prepared model."""

    sha256: str
    claim_name: str
    path: str
    weights: tuple[str, ...]  # names of its safetensors files
    kept: tuple[str, ...] = ()  # names of files that a result carries on
    adapter: Mapping[str, str] | None = None  # sha256, claimName and path of what was added to it

    @property
    def digest(self) -> str:
        """SHA-256 of what the weights were made from."""
        if self.adapter is None:
            return self.sha256
        return hashlib.sha256(f"{self.sha256}\n{self.adapter['sha256']}\n".encode()).hexdigest()


def prepare_model(config: TrainingConfig, paths: Paths, vault: Vault) -> Path:
    """The directory of the prepared base model, made now unless an earlier attempt has done so.

    The job's adapter is added to its weights.

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
            write(source, _adapter_place(config, paths), config, directory, vault)
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
    facts = [FORMAT, str(config.job), config.seals_data, base.model_dump(mode="json")]
    facts += _looks(Place.find(base, paths))
    if config.model.adapter is not None and (adapter := _adapter_place(config, paths)):
        facts += [config.model.adapter.model_dump(mode="json"), *_looks(adapter)]
    digest = hashlib.sha256(json_text(facts).encode()).hexdigest()[:32]
    return paths.prepared / f"model-{vault.name_of(digest)}"


def _looks(source: Place) -> list[tuple[str, int, int]]:
    path = source.path
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    return [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]


def _adapter_place(config: TrainingConfig, paths: Paths) -> Place | None:
    adapter = config.model.adapter
    return None if adapter is None else Place.find(adapter, paths, "model.adapter")


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
            _origin(facts.get("adapter")),
        ),
    )


def _origin(facts: Any) -> dict[str, str] | None:
    return None if facts is None else {name: word(facts[name]) for name in ("sha256", "claimName", "path")}


def generation_settings(directory: Path, vault: Vault) -> dict[str, Any]:
    """How a prepared model says that texts are written with it; empty where it says nothing."""
    if GENERATION not in read_source(directory, vault).kept:
        return {}
    settings: dict[str, Any] = vault.document(directory / GENERATION, dict)
    return settings


def base_digest(config: TrainingConfig, paths: Paths, vault: Vault) -> str | None:
    """SHA-256 of what the prepared base model was made from; None from scratch."""
    return None if config.model.base is None else read_source(prepared_model(config, paths, vault), vault).digest


def prepared_settings(directory: Path, vault: Vault) -> dict[str, Any]:
    """The content of a prepared model's config.json."""
    settings: dict[str, Any] = vault.document(directory / CONFIG, dict)
    return settings


def _base(config: TrainingConfig) -> BaseModelSource:
    assert config.model.base is not None, "a model from scratch has no source"
    return config.model.base


def _prepare_gguf(source: Place, added: Place | None, job: TrainingConfig, directory: Path, vault: Vault) -> None:
    refuse_other_file(source.path)
    base = _base(job)
    digest = _verified("model.base", base, digest_of(source.path, source.claim), vault)
    gguf, config, tokenizer = _checked_gguf(source)
    refuse_misfit(job, config)
    shapes = {name: tensor.shape for name, tensor in gguf_model.weights(gguf)}
    updates, adapter = _adapter(added, job, shapes, config, vault)
    vault.write(directory / "model.safetensors", stream(_entries(gguf, config, updates)))
    weights = ("model.safetensors",)
    _finish(directory, vault, config, tokenizer, Source(digest, base.claim_name, base.path, weights, adapter=adapter))


def _prepare_directory(source: Place, added: Place | None, job: TrainingConfig, directory: Path, vault: Vault) -> None:
    base = _base(job)
    config, tokenizer, weights = checked_directory(source)
    refuse_misfit(job, config)
    digests = file_digests(source.path, source.claim)
    digest = _verified("model.base", base, listing_digest(digests), vault)
    named = {} if added is None else _named(source, weights, config)
    updates, adapter = _adapter(added, job, dict(named.values()), config, vault)
    of_files = {key: updates[name] for key, (name, _) in named.items() if name in updates}
    kept = kept_files(source)
    for name in weights:
        vault.write(directory / name, bytes_of(source, name, digests[name], of_files))
    origin = Source(digest, base.claim_name, base.path, weights, tuple(kept), adapter)
    _finish(directory, vault, config, tokenizer | kept, origin)


def _named(source: Place, weights: Sequence[str], config: Mapping[str, Any]) -> dict[str, tuple[str, Shape]]:
    """The names of weights in transformers and their shapes, by the names that files have for them."""
    found, family = weights_in(source.path, weights, source.claim), family_of(config.get("model_type"))
    return {key: (name, found[key][1]) for key, name in full_names(found, family, family.passed_over(config)).items()}


def _adapter(
    added: Place | None, job: TrainingConfig, base: Mapping[str, Shape], config: Mapping[str, Any], vault: Vault
) -> tuple[dict[str, Update], dict[str, str] | None]:
    """What is added to the base's weights, by their names; and where it is from."""
    asked = job.model.adapter
    if added is None or asked is None:
        return {}, None
    adapter = read_adapter(added, base, config)
    digest = _verified("model.adapter", asked, adapter.sha256, vault)
    updates = {f"{layer}.weight": update for layer, update in adapter.updates.items()}
    return updates, {"sha256": digest, "claimName": asked.claim_name, "path": asked.path}


def refuse_unfit_adapter(base: Place, added: Place, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError where `added` is no adapter of the base model, whose config.json has these `settings`."""
    if base.path.is_dir():
        shapes = dict(_named(base, checked_directory(base)[2], settings).values())
    else:
        shapes = {name: tensor.shape for name, tensor in gguf_model.weights(_checked_gguf(base)[0])}
    read_adapter(added, shapes, settings)


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
        **({} if source.adapter is None else {"adapter": source.adapter}),
    }
    small = {CONFIG: json_text(config).encode(), SOURCE: json_text(facts).encode(), **others}
    for name, content in small.items():
        vault.write(directory / name, content)


def _verified(field: str, base: BaseModelSource, actual: str, vault: Vault) -> str:
    if base.sha256 not in (None, actual):
        found = "another one" if vault.sealed else actual
        raise IntegrityError(
            f"{field} {base.claim_name}/{base.path}: SHA-256 is {found}, the job expects {base.sha256}",
            hint=f"the file is not the one that was approved, or {field}.sha256 is out of date",
        )
    return actual


def _entries(gguf: GgufFile, config: Mapping[str, Any], updates: Mapping[str, Update]) -> list[Entry]:
    """The weights in fp32, each de-quantised when it is written, and with its update."""
    return [
        Entry(name, "F32", tensor.shape, partial(_values, tensor, config, name, updates.get(name)))
        for name, tensor in gguf_model.weights(gguf)
    ]


def _values(tensor: GgufTensor, config: Mapping[str, Any], name: str, update: Update | None) -> bytes | memoryview:
    values = np.ascontiguousarray(gguf_model.values(tensor, config)).reshape(-1).view(np.uint8).data
    return values if update is None else updated(name, View("F32", tensor.shape, values), update)
