"""The base model: checked against its digest, brought into one form, kept in the job's vault.

Prepared once per job, by the init container of node 0; each rank and restart then loads it in
seconds.  Without torch, whose import takes longer than most conversions.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from deepseek_trainer.base_model import gguf_model
from deepseek_trainer.base_model.digest import digest_of, file_digests, listing_digest
from deepseek_trainer.base_model.families import FAMILIES, family_of, read_dimensions, scratch_dimensions
from deepseek_trainer.base_model.gguf_file import GgufFile, GgufTensor, open_gguf
from deepseek_trainer.base_model.headers import refuse_batch_norm, refuse_other_weights, weights_in
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.base_model.tokenizer_files import NAMES as TOKENIZER_NAMES
from deepseek_trainer.base_model.tokenizer_files import SETTINGS, TOKENIZER, tokenizer_from
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.model import BaseModelSource
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.storage.commit import committed
from deepseek_trainer.storage.tensorfile import Entry, stream
from deepseek_trainer.storage.vault import Vault

CONFIG: Final = "config.json"
PREPROCESSOR: Final = "preprocessor_config.json"  # how pixels become what a model of images takes
SOURCE: Final = "source.json"  # where it came from, its digest, its weight files
FORMAT: Final = "dstj-model/1"
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_CHUNK = 16 << 20  # [bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """What source.json says of a prepared model."""

    sha256: str
    claim_name: str
    path: str
    weights: tuple[str, ...]  # names of its safetensors files


def prepare_model(config: TrainingConfig, paths: Paths, vault: Vault) -> Path:
    """The directory of the prepared base model, made now unless an earlier attempt has done so.

    Raises ConfigError where the model is missing, of a kind that cannot be trained, or not as the job wants to
    train it, IntegrityError where it is not the one that the job names by digest.
    """
    source = _existing(_base(config), paths)
    target = prepared_model(config, paths, vault)
    if target.exists():
        refuse_misfit(config, _prepared_settings(target, vault))
        return target
    with committed(target) as directory:
        write = _prepare_gguf if source.is_file() else _prepare_directory
        write(source, config, directory, vault)
    return target


def dimensions_of(config: TrainingConfig, paths: Paths, vault: Vault) -> Dimensions | None:
    """Of the model from scratch, or of the prepared base; None for one of images, of which they are not known."""
    if config.data.images is not None:
        return None
    if config.model.architecture is not None:
        return scratch_dimensions(config.model.architecture)
    return read_dimensions(_prepared_settings(prepared_model(config, paths, vault), vault))


def prepared_model(config: TrainingConfig, paths: Paths, vault: Vault) -> Path:
    """Where the prepared base model is, or will be.

    Named after what a `stat` of the source tells (name, size, time of change), so that no rank reads
    the whole source to find it; what was written there was verified.
    """
    base = _base(config)
    source = _existing(base, paths)
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    facts = [FORMAT, str(config.job), config.seals_data, base.model_dump(mode="json")]
    facts += [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return paths.prepared / f"model-{vault.name_of(digest)}"


def source_model(source: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Content of config.json and of the tokenizer's files of a base model as it lies on its claim, unverified."""
    if source.is_file():
        _refuse_pickle(source)
        gguf = open_gguf(source)
        return gguf_model.model_config(gguf), gguf_model.tokenizer_files(gguf)
    config, tokenizer, _ = _checked_directory(source)
    return config, tokenizer


def read_source(directory: Path, vault: Vault) -> Source:
    """Where a prepared model came from."""
    facts = json.loads(bytes(vault.read(directory / SOURCE)))
    return Source(facts["sha256"], facts["claimName"], facts["path"], tuple(facts["weights"]))


def base_digest(config: TrainingConfig, paths: Paths, vault: Vault) -> str | None:
    """SHA-256 of what the prepared base model was made from; None from scratch."""
    return None if config.model.base is None else read_source(prepared_model(config, paths, vault), vault).sha256


def _prepared_settings(directory: Path, vault: Vault) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(bytes(vault.read(directory / CONFIG)))
    return settings


def _base(config: TrainingConfig) -> BaseModelSource:
    assert config.model.base is not None, "a model from scratch has no source"
    return config.model.base


def _existing(base: BaseModelSource, paths: Paths) -> Path:
    source = paths.claim(base.claim_name, base.path)
    if source.exists():
        return source
    beside = source.parent
    while not beside.exists():
        beside = beside.parent
    listed = ", ".join(sorted(path.name for path in beside.iterdir())[:20]) or "nothing"
    raise ConfigError(
        f"model.base: claim {base.claim_name} has no {base.path or 'such volume'}: {source} does not exist",
        hint=f"{beside} holds {listed}",
    )


def _prepare_gguf(source: Path, job: TrainingConfig, directory: Path, vault: Vault) -> None:
    _refuse_pickle(source)
    base = _base(job)
    digest = _verified(base, digest_of(source), vault)
    gguf = open_gguf(source)
    config, tokenizer = gguf_model.model_config(gguf), gguf_model.tokenizer_files(gguf)
    _check_vocabulary(config, tokenizer)
    refuse_misfit(job, config)
    vault.write(directory / "model.safetensors", stream(_entries(gguf, config)))
    _finish(directory, vault, config, tokenizer, Source(digest, base.claim_name, base.path, ("model.safetensors",)))


def _prepare_directory(source: Path, job: TrainingConfig, directory: Path, vault: Vault) -> None:
    base = _base(job)
    config, tokenizer, weights = _checked_directory(source)
    refuse_misfit(job, config)
    digests = file_digests(source)
    digest = _verified(base, listing_digest(digests), vault)
    for name in weights:
        vault.write(directory / name, _same_bytes(source / name, digests[name]))
    _finish(directory, vault, config, tokenizer, Source(digest, base.claim_name, base.path, weights))


def _finish(
    directory: Path, vault: Vault, config: Mapping[str, Any], tokenizer: Mapping[str, bytes], source: Source
) -> None:
    facts = {
        "format": FORMAT,
        "sha256": source.sha256,
        "claimName": source.claim_name,
        "path": source.path,
        "weights": source.weights,
    }
    small = {CONFIG: json.dumps(config).encode(), SOURCE: json.dumps(facts).encode(), **tokenizer}
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


def _checked_directory(source: Path) -> tuple[dict[str, Any], dict[str, bytes], tuple[str, ...]]:
    """Configuration, files beside it and names of the weight files of a model that can be trained."""
    weights = _weight_files(source)
    found = weights_in(source, weights)
    refuse_batch_norm(source, found)
    config = _json(source, CONFIG)
    if "auto_map" in config:
        raise ConfigError(
            f"{source} brings code of its own (auto_map), which is never run",
            hint=f"models of type {', '.join(FAMILIES)} need none",
        )
    family = family_of(config.get("model_type"), str(source))
    if "quantization_config" in config:
        raise ConfigError(f"{source} is quantised: its weights cannot be trained", hint="give the unquantised model")
    beside = _preprocessor(source) if family.sees_images else _tokenizer_files(source)
    if not family.sees_images:
        _check_vocabulary(config, beside)
    refuse_other_weights(source, found, config)
    return config, beside, weights


def _preprocessor(source: Path) -> dict[str, bytes]:
    """Empty where there is none, so that nobody can take it away unseen from what is sealed."""
    settings = _json(source, PREPROCESSOR) if (source / PREPROCESSOR).exists() else {}
    return {PREPROCESSOR: json.dumps(settings).encode()}


def _weight_files(source: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in source.glob("*.safetensors")))
    if not names:
        for path in sorted(source.iterdir()):
            _refuse_pickle(path)
        raise ConfigError(
            f"{source} has no *.safetensors files", hint="model.base.path names a directory or a .gguf file"
        )
    index = source / "model.safetensors.index.json"
    if not index.exists():
        return names
    listed = tuple(sorted(set(_json(source, index.name)["weight_map"].values())))
    if missing := sorted(set(listed) - set(names)):
        raise ConfigError(f"{source} lacks {', '.join(missing)}, which {index.name} names", hint="copy the model again")
    return listed


def _refuse_pickle(path: Path) -> None:
    if path.suffix in _PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which runs code when it is loaded: only safetensors and GGUF are read",
            hint="convert it where it is trusted: model.save_pretrained(path) of transformers writes safetensors",
        )


def _json(source: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((source / name).read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{source} has no {name}", hint="model.base.path names a model's own directory") from None
    except ValueError as error:
        raise ConfigError(f"{source / name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source / name} is not a JSON object")
    return content


def _tokenizer_files(source: Path) -> dict[str, bytes]:
    if not (source / TOKENIZER).exists():
        raise ConfigError(
            f"{source} has no {TOKENIZER}",
            hint="AutoTokenizer.from_pretrained(path).save_pretrained(path) of transformers writes one",
        )
    settings = _json(source, SETTINGS)
    template = source / "chat_template.jinja"
    if template.exists():
        settings["chat_template"] = template.read_text()
    return dict(zip(TOKENIZER_NAMES, ((source / TOKENIZER).read_bytes(), json.dumps(settings).encode()), strict=True))


def _check_vocabulary(config: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    highest = max(tokenizer_from(files).get_vocab().values())
    if highest >= config["vocab_size"]:
        raise ConfigError(
            f"the tokenizer knows the token {highest}, the model has {config['vocab_size']} embeddings",
            hint="take tokenizer and weights from the same release of the model",
        )


def _same_bytes(path: Path, digest: str) -> Iterator[bytes]:
    """The file in pieces; raises IntegrityError at the end if it is not what was verified a moment ago."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            seen.update(chunk)
            yield chunk
    if seen.hexdigest() != digest:
        raise IntegrityError(f"{path} was changed while it was read", hint="nobody may write to the claim during a run")


def _entries(gguf: GgufFile, config: Mapping[str, Any]) -> list[Entry]:
    """The weights in fp32, each de-quantised when it is written."""
    return [
        Entry(name, "F32", tensor.shape, partial(_values, tensor, config)) for name, tensor in gguf_model.weights(gguf)
    ]


def _values(tensor: GgufTensor, config: Mapping[str, Any]) -> memoryview:
    return np.ascontiguousarray(gguf_model.values(tensor, config)).reshape(-1).view(np.uint8).data
