"""An adapter in peft's layout, as `model.adapter` names it: read, and held against the base that it is to be added to.

Without torch.  What the settings of peft say is honoured or refused, and so is each tensor.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from deepseek_trainer.base_model.decoder import Settings, Shape, is_tied
from deepseek_trainer.base_model.digest import file_digests, listing_digest
from deepseek_trainer.base_model.families import family_of
from deepseek_trainer.base_model.guard import place, understood
from deepseek_trainer.base_model.place import MAX_JSON, Place
from deepseek_trainer.base_model.stand_ins import LFS_POINTER
from deepseek_trainer.base_model.updates import STORED, Matrix, Update, fp32
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.foreign import first_line, shown, unambiguous
from deepseek_trainer.storage.tensorfile import View, views

SETTINGS: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
MAX_WEIGHTS: Final = 64 << 30  # [bytes]
_PICKLE: Final = "adapter_model.bin"
_MERGE: Final = (
    "merge it where it was trained, `merge_and_unload()` and `save_pretrained(path)` of peft, and give the result "
    "as model.base"
)
_LAYOUT: Final = "model.adapter.path names a directory as peft writes it, such as `adapter` in a job's result"
_TENSOR: Final = re.compile(r"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")
# Settings of peft that are read here, or that mean nothing once an adapter is trained.
_READ: Final = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"})
_MEANINGLESS: Final = (
    {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    | {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "fan_in_fan_out"}
    | {"megatron_core", "loftq_config", "eva_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"}
)
_OF_THE_BASE: Final = (True, False, None, "gaussian", "orthogonal", "eva")  # beginnings that leave the base as it is


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to weights, by the names of their layers, and the SHA-256 of the directory."""

    sha256: str
    updates: Mapping[str, Update]


def read_adapter(source: Place, base: Mapping[str, Shape], settings: Settings) -> Adapter:
    """The adapter of a model with these weights, by their names in transformers, and with this config.json.

    Raises ConfigError where it is none, or not one of this model.
    """
    with understood(source.path):
        _refuse_other_layouts(source)
        digests = file_digests(source.path, source.claim)
        asked = _settings(source, _content(source, SETTINGS, digests, MAX_JSON))
        tensors = views(memoryview(_content(source, WEIGHTS, digests, MAX_WEIGHTS)), WEIGHTS)
        is_transposed = family_of(settings.get("model_type")).is_transposed
        updates = dict(_updates(source.path, asked, tensors, is_transposed=is_transposed))
        _refuse_misfits(source.path, updates, base, settings)
        _refuse_missing(source.path, updates, base, asked)
    return Adapter(listing_digest(digests), updates)


def _refuse_other_layouts(source: Place) -> None:
    if not source.path.is_dir():
        raise ConfigError(f"{place(source.path)} is no directory", hint=_LAYOUT)
    if not source.has(SETTINGS):
        names = {path.name for path in source.path.iterdir()}
        if f"{SETTINGS}.sealed" in names:
            raise ConfigError(f"{source.path} is sealed", hint="unseal the result first: `dstj export unseal`")
        is_model = "config.json" in names
        raise ConfigError(
            f"{source.path} has no {SETTINGS}{': it is a whole model' if is_model else ''}",
            hint="give it as model.base, without model.adapter" if is_model else _LAYOUT,
        )
    if not source.has(WEIGHTS):
        is_pickle = source.has(_PICKLE)
        raise ConfigError(
            f"{source.path} has no {WEIGHTS}"
            + (f", but {_PICKLE}, a pickle, which runs code when it is loaded" if is_pickle else ""),
            hint="load it with peft where it is trusted: save_pretrained(path) writes safetensors",
        )


def _content(source: Place, name: str, digests: Mapping[str, str], most: int) -> bytes:
    """Raises IntegrityError if it is not what was digested a moment ago."""
    content = source.content(name, most)
    if content.startswith(LFS_POINTER):
        raise ConfigError(
            f"{place(source.path / name)} is a Git LFS pointer, not the file itself",
            hint="run `git lfs pull` where it was cloned",
        )
    if hashlib.sha256(content).hexdigest() != digests[name]:
        raise IntegrityError(
            f"{place(source.path / name)} was changed while it was read",
            hint="nobody may write to the claim during a run",
        )
    return content


def _settings(source: Place, content: bytes) -> dict[str, Any]:
    where = place(source.path / SETTINGS)
    try:
        asked = unambiguous(content)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {first_line(error)}", hint=_LAYOUT) from None
    if not isinstance(asked, dict):
        raise ConfigError(f"{where} is not a JSON object", hint=_LAYOUT)
    if asked.get("peft_type") != "LORA":
        raise ConfigError(f"{where}: peft_type is {shown(asked.get('peft_type'))}: LORA alone is read", hint=_MERGE)
    if asked.get("init_lora_weights", True) not in _OF_THE_BASE:
        raise ConfigError(
            f"{where}: init_lora_weights is {shown(asked['init_lora_weights'])}, which is trained beside other weights "
            "than the base's",
            hint=_MERGE,
        )
    known = _READ | _MEANINGLESS | {"init_lora_weights"}
    for name in sorted(asked.keys() - known):
        if asked[name] and (name, asked[name]) != ("bias", "none"):
            raise ConfigError(f"{where}: {shown(name)} is {shown(asked[name])}, which is not read", hint=_MERGE)
    return asked


def _updates(
    path: Path, asked: Mapping[str, Any], tensors: Mapping[str, View], *, is_transposed: bool
) -> Iterator[tuple[str, Update]]:
    parts: dict[str, dict[str, Matrix]] = {}
    for key, tensor in tensors.items():
        if (match := _TENSOR.fullmatch(key)) is None:
            raise ConfigError(
                f"{path}: {WEIGHTS} has {shown(key, 200)[1:-1]}, which is no part of a linear layer's adapter",
                hint=_MERGE,
            )
        parts.setdefault(match[1], {})[match[2].partition(".")[0]] = _matrix(path, key, tensor)
    if not parts:
        raise ConfigError(f"{path}: {WEIGHTS} is empty", hint=_LAYOUT)
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if asked.get("use_dora") else set())
    for name, found in sorted(parts.items()):
        if found.keys() != wanted:
            raise ConfigError(
                f"{path}: {WEIGHTS} has of {name} {', '.join(sorted(found))}; by {SETTINGS} it has "
                f"{', '.join(sorted(wanted))}",
                hint="copy the adapter again from where it was trained",
            )
        rank, alpha = _of(path, asked, "rank_pattern", "r", name), _of(path, asked, "alpha_pattern", "lora_alpha", name)
        scale = alpha / (rank**0.5 if asked.get("use_rslora") else rank)
        a, b, magnitude = found["lora_A"], found["lora_B"], found.get("lora_magnitude_vector")
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
            raise ConfigError(
                f"{path}: {WEIGHTS}: A and B of {name} have shapes {a.shape} and {b.shape}, by {SETTINGS} the rank is "
                f"{rank:g}",
                hint="copy the adapter again from where it was trained",
            )
        if magnitude is not None and magnitude.shape != b.shape[:1]:
            raise ConfigError(f"{path}: {WEIGHTS}: lora_magnitude_vector of {name} has shape {magnitude.shape}")
        yield name, Update(a, b, scale, magnitude, is_transposed)


def _matrix(path: Path, key: str, tensor: View) -> Matrix:
    if tensor.dtype not in STORED:
        raise ConfigError(f"{path}: {WEIGHTS}: {key} is of type {tensor.dtype}: {', '.join(STORED)} are read")
    values = fp32(tensor)
    if not np.isfinite(values).all():
        raise ConfigError(f"{path}: {WEIGHTS}: {key} is not finite", hint="take an earlier checkpoint of the adapter")
    return values


def _of(path: Path, asked: Mapping[str, Any], patterns: str, usual: str, layer: str) -> float:
    """The rank or alpha of a layer.  peft's patterns may be any expression: plain ends of names alone are read."""
    special, found = asked.get(patterns) or {}, asked.get(usual)
    if not isinstance(special, dict) or not all(re.fullmatch(r"[\w.]+", name) for name in special):
        raise ConfigError(f"{path}: {SETTINGS}: {patterns} is {shown(special)}: names of layers are read", hint=_MERGE)
    for name, value in special.items():
        if f".{layer}".endswith(f".{name}"):
            found = value
            break
    if type(found) not in (int, float) or not 0 < found < 1 << 20:  # type: ignore[operator]
        raise ConfigError(f"{path}: {SETTINGS}: {usual} is {shown(found)}, and must be a number above 0", hint=_LAYOUT)
    return float(found)  # type: ignore[arg-type]


def _refuse_misfits(path: Path, updates: Mapping[str, Update], base: Mapping[str, Shape], settings: Settings) -> None:
    family = family_of(settings.get("model_type"))
    for name, update in updates.items():
        shape = base.get(f"{name}.weight")
        if name == family.head and is_tied(settings, by_default=family.tied):
            raise ConfigError(
                f"{path} changes {name}, which is the same as the embedding in model.base: one without the other "
                "cannot change",
                hint=_MERGE,
            )
        if shape is None:
            raise ConfigError(
                f"{path} is for a model with a layer {shown(name, 200)[1:-1]}, which model.base does not have",
                hint="give the base that the adapter was trained beside: base_model_name_or_path of "
                f"{SETTINGS} may name it",
            )
        if shape != update.shape:
            raise ConfigError(
                f"{path} is for a {name} of {update.shape[0]} x {update.shape[1]}, that of model.base is "
                f"{' x '.join(map(str, shape))}",
                hint="give the base that the adapter was trained beside",
            )


def _refuse_missing(
    path: Path, updates: Mapping[str, Update], base: Mapping[str, Shape], asked: Mapping[str, Any]
) -> None:
    """What target_modules names and the tensors lack.  An expression, or a choice of layers, is not followed."""
    targets = asked.get("target_modules")
    if not isinstance(targets, list) or asked.get("layers_to_transform") or asked.get("exclude_modules"):
        return
    of_experts = any(".experts." in name for name in updates)
    layers = {name.removesuffix(".weight") for name in base if name.endswith(".weight")} | updates.keys()
    for target in targets:
        named = {layer for layer in layers if f".{layer}".endswith(f".{target}")}
        if not named:
            raise ConfigError(
                f"{path}: {SETTINGS}: target_modules has {shown(target)}, and model.base has no such layer",
                hint="give the base that the adapter was trained beside",
            )
        of_target = {layer for layer in named if of_experts or ".experts." not in layer}
        if missing := sorted(of_target - updates.keys()):
            raise ConfigError(
                f"{path}: {WEIGHTS} lacks {missing[0]}, which target_modules names",
                hint="copy the adapter again from where it was trained",
            )
