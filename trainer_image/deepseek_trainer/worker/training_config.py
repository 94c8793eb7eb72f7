"""Reads config.json, and refuses what this trainer does not know or its image does not have."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_line, parsed
from deepseek_trainer.contract.optimization import Strategy
from deepseek_trainer.contract.rules import unknown_fields
from deepseek_trainer.storage.opening import content_of

MAX_BYTES: Final = 4 << 20  # of the config; the annotation that holds it has at most 256 KiB


def load_config(path: Path) -> TrainingConfig:
    """Read the config.  Raises ConfigError, which names the field, if it is missing, malformed or not supported."""
    try:
        data = parsed(content_of(path, max_bytes=MAX_BYTES))
    except FileNotFoundError:
        raise ConfigError(f"no training config at {path}", hint="the operator or `dstj run` writes it") from None
    except ValueError as error:
        raise ConfigError(
            f"{path} is not JSON: {first_line(error)}", hint="the operator or `dstj run` writes it anew"
        ) from None
    if unknown := list(unknown_fields(TrainingConfig, data)):
        hint = "the operator is newer than this trainer image: update the image"
        raise ConfigError(f"{path}: {unknown[0]}", hint=hint)
    try:
        config = TrainingConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    _refuse_missing(config.optimization.strategy)
    return config


def _refuse_missing(strategy: Strategy) -> None:
    if strategy.zero_stage and find_spec("deepspeed") is None:
        raise ConfigError(
            f"optimization.strategy {strategy} needs DeepSpeed, which this trainer image does not have",
            hint="set strategy: FSDP, or build the image with the extra trainer-gpu: see trainer_image/Dockerfile",
        )


def config_digest(config: TrainingConfig) -> str:
    """SHA-256 of all settings.  A checkpoint records those that it was made with."""
    settings = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return hashlib.sha256(json_text(settings, sort_keys=True).encode()).hexdigest()
