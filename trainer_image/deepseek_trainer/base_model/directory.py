"""A base model as a directory of safetensors files, checked before its weights are read."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from deepseek_trainer.base_model.bounds import refuse_out_of_bounds
from deepseek_trainer.base_model.decoder import Shape
from deepseek_trainer.base_model.examination import refuse_unfit_tokenizer
from deepseek_trainer.base_model.families import FAMILIES, family_of
from deepseek_trainer.base_model.guard import place
from deepseek_trainer.base_model.headers import refuse_batch_norm, refuse_other_weights, weights_in
from deepseek_trainer.base_model.lookalikes import refuse_lookalike, weights_of
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.base_model.quantised import QUANTISED, refuse_quantised
from deepseek_trainer.base_model.slow_tokenizers import no_tokenizer, with_end_of_text
from deepseek_trainer.base_model.stand_ins import refuse_stand_ins
from deepseek_trainer.base_model.tied import refuse_other_head
from deepseek_trainer.base_model.tokenizer_files import NAMES as TOKENIZER_NAMES
from deepseek_trainer.base_model.tokenizer_files import SETTINGS, TOKENIZER
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown

log = logging.getLogger(__name__)

CONFIG: Final = "config.json"
PREPROCESSOR: Final = "preprocessor_config.json"  # how pixels become what a model of images takes
INDEX: Final = "model.safetensors.index.json"
TEMPLATE: Final = "chat_template.jinja"
MAX_TOKENIZER: Final = 256 << 20  # [bytes]; the largest that exist are a tenth of that
MAX_TEMPLATE: Final = 4 << 20  # [bytes]
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


def checked_directory(source: Place) -> tuple[dict[str, Any], dict[str, bytes], tuple[str, ...]]:
    """Configuration, files beside it and names of the weight files of a model that can be trained.

    Raises ConfigError for any other.
    """
    refuse_stand_ins(source.path, (CONFIG, INDEX, TOKENIZER, SETTINGS, TEMPLATE), source.claim)
    refuse_lookalike(source.path)
    weights = _weight_files(source)
    refuse_stand_ins(source.path, weights, source.claim)
    settings = source.json(CONFIG)
    refuse_quantised(settings, source.path)
    found = weights_in(source.path, weights, source.claim)
    refuse_batch_norm(source.path, found)
    _refuse_misplaced(source, found)
    config = _trainable(source, settings)
    beside = _beside(source, config)
    refuse_other_weights(source.path, found, config)
    refuse_other_head(source, found, config)
    return config, beside, weights


def refuse_pickle(path: Path) -> None:
    if path.suffix in _PICKLES:
        raise ConfigError(
            f"{place(path)} is a pickle, which runs code when it is loaded: only safetensors and GGUF are read",
            hint="convert it where it is trusted: model.save_pretrained(path) of transformers writes safetensors",
        )


def refuse_other_file(path: Path) -> None:
    """Raises ConfigError for a file that is a part of a model, or a pickle."""
    refuse_pickle(path)
    if path.suffix in (".safetensors", ".json"):
        raise ConfigError(
            f"{place(path)} is one file of a model: a .gguf file alone is a whole one",
            hint=f"set model.base.path to its directory, which holds {CONFIG} and {TOKENIZER} too",
        )


def _trainable(source: Place, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without code of its own, which is never run, and without an empty word on quantisation."""
    if "auto_map" in config:
        _pass_over_code(source, config)
    family_of(config.get("model_type"), str(source.path), config)
    refuse_out_of_bounds(config, place(source.path / CONFIG))
    return {name: value for name, value in config.items() if name not in ("auto_map", *QUANTISED)}


def _pass_over_code(source: Place, config: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the model is, by its class's name, one that the trainer builds without that code."""
    kind, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or kind not in FAMILIES or not _are_of(classes, kind):
        raise ConfigError(
            f"{source.path} brings code of its own (auto_map), which is never run",
            hint=f"models of type {', '.join(FAMILIES)} need none",
        )
    log.warning(
        "%s brings code of its own (auto_map), which is never run: it is built as every %s model",
        place(source.path),
        kind,
    )


def _are_of(classes: object, kind: str) -> bool:
    """Whether classes are named after their type of model: DeepseekV2ForCausalLM, deepseek_v2."""
    names = classes if isinstance(classes, list) and classes else [None]
    return all(isinstance(name, str) and name.lower().startswith(f"{kind.replace('_', '')}for") for name in names)


def _beside(source: Place, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The other files that training needs."""
    if family_of(config.get("model_type")).sees_images:
        return _preprocessor(source)
    files = _tokenizer_files(source)
    refuse_unfit_tokenizer(files, config, source.path)
    return files


def _preprocessor(source: Place) -> dict[str, bytes]:
    """Empty where there is none, so that nobody can take it away unseen from what is sealed."""
    settings = source.json(PREPROCESSOR) if source.has(PREPROCESSOR) else {}
    return {PREPROCESSOR: json_text(settings).encode()}


def _weight_files(source: Place) -> tuple[str, ...]:
    held = sorted(path.name for path in source.path.glob("*.safetensors"))
    if not (names := weights_of(held)):
        for path in sorted(source.path.iterdir()):
            refuse_pickle(path)
        raise ConfigError(
            f"{source.path} has no *.safetensors files", hint="model.base.path names a directory or a .gguf file"
        )
    for name in names:
        if not name.isprintable():
            raise ConfigError(f"{source.path} has a file {shown(name)}, which is no name", hint="name it otherwise")
    return _indexed(source, names) if source.has(INDEX) else names


def _indexed(source: Place, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the files in the directory that the index names."""
    listed = source.json(INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ConfigError(
            f"{place(source.path / INDEX)} has no weight_map, or one with other values than names of files",
            hint="copy the model again; without an index all *.safetensors files are read",
        )
    if missing := sorted(set(listed.values()) - set(names)):
        raise ConfigError(
            f"{source.path} lacks {', '.join(shown(name)[1:-1] for name in missing[:10])}, which {INDEX} names",
            hint="copy the model again",
        )
    return tuple(sorted(set(listed.values())))


def _refuse_misplaced(source: Place, found: Mapping[str, tuple[str, Shape]]) -> None:
    """Raises ConfigError for a weight that lies in another file than the index says: files of two models are mixed."""
    listed = source.json(INDEX)["weight_map"] if source.has(INDEX) else {}
    for key, file in sorted(listed.items()):
        if key in found and found[key][0] != file:
            raise ConfigError(
                f"{place(source.path / INDEX)} has {shown(key)} in {shown(file)}, and it lies in {found[key][0]}",
                hint="copy the model again; without an index all *.safetensors files are read",
            )


def _tokenizer_files(source: Place) -> dict[str, bytes]:
    if not source.has(TOKENIZER):
        raise no_tokenizer(source.path)
    settings = with_end_of_text(source, source.json(SETTINGS) if source.has(SETTINGS) else {})
    if source.has(TEMPLATE):
        settings["chat_template"] = _text(source, TEMPLATE)
    content = (source.content(TOKENIZER, MAX_TOKENIZER), json_text(settings).encode())
    return dict(zip(TOKENIZER_NAMES, content, strict=True))


def _text(source: Place, name: str) -> str:
    try:
        return source.content(name, MAX_TEMPLATE).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{place(source.path / name)} is not UTF-8 at byte {error.start + 1}", hint="convert it to UTF-8"
        ) from None
