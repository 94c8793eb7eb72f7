"""The model that is trained, as it is before training: from the prepared base or from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.base_model.directory import CONFIG
from deepseek_trainer.base_model.families import family_of
from deepseek_trainer.base_model.families.scratch import scratch_settings
from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.base_model.source import prepared_model, prepared_settings, read_source
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.model import Architecture, ArchitectureFamily
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.model.experts import compute_by_autocast
from deepseek_trainer.model.shared import share_layers
from deepseek_trainer.storage.tensorfile import View, views
from deepseek_trainer.storage.vault import Vault

# What the weights of a model may be stored in, as safetensors names it.
DTYPES: Final = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NOTHING: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class ParameterCount:
    total: int
    trainable: int


def load_model(
    config: TrainingConfig, paths: Paths, vault: Vault, device: torch.device, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model before training, in training mode, without adapters.

    The prepared base comes straight from the vault into memory; a model from scratch is
    initialised on the CPU from the job's seed, so that every rank and device starts alike.
    """
    if config.model.architecture is not None:
        model = scratch_model(config.model.architecture, config.data.sequence_length, config.optimization.seed)
    else:
        model = load_base(prepared_model(config, paths, vault), vault, dtype)
    compute_by_autocast(model)
    return model.to(device=device, dtype=dtype).train()


def load_base(directory: Path, vault: Vault, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A prepared model on the CPU.  Raises ConfigError where its weights do not fit its config.json."""
    return filled(*read_base(directory, vault), dtype)


def read_base(directory: Path, vault: Vault) -> tuple[Settings, dict[str, Tensor]]:
    """The config.json of a prepared model, and its weights as they are stored, without old buffers."""
    settings = prepared_settings(directory, vault)
    weights: dict[str, Tensor] = {}
    with understood("the base model's weights"):
        for name in read_source(directory, vault).weights:
            weights |= {key: _tensor(view) for key, view in views(vault.read(directory / name), name).items()}
        old = family_of(settings.get("model_type")).old_buffers
    return settings, {name: weight for name, weight in weights.items() if not name.endswith(old)}


def filled(
    settings: Settings, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32, drawn: frozenset[str] = NOTHING
) -> PreTrainedModel:
    """The model of a config.json with these weights.  Those that are `drawn` at random instead may be missing.

    Raises ConfigError where the weights do not fit.
    """
    with understood(f"the base model's {CONFIG}"):
        family = family_of(settings.get("model_type"))
        kind, prefixes = getattr(transformers, family.model_class), family.passed_over(settings)
        weights = {name: weight for name, weight in weights.items() if not name.startswith(prefixes)}
        settings = {**settings, **family.without}
        model, loading = kind.from_pretrained(
            None, config=kind.config_class(**settings), state_dict=weights, dtype=dtype, output_loading_info=True
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted({*map(str, loading[problem])} - drawn):
            raise ConfigError(
                f"the base model's weights do not fit its {CONFIG}: {problem.replace('_', ' ')} {', '.join(names[:3])}",
                hint="take both from the same release of the model",
            )
    assert isinstance(model, PreTrainedModel)
    return model


def scratch_model(architecture: Architecture, max_positions: int, seed: int) -> PreTrainedModel:
    """A decoder with weights drawn from `seed`; the caller's random state stays as it was."""
    settings = scratch_settings(architecture)
    kind = getattr(transformers, family_of(settings["model_type"]).model_class)
    config = kind.config_class(**settings, max_position_embeddings=max_positions, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, as it is forked
        model: PreTrainedModel = kind(config)
    if architecture.family is ArchitectureFamily.ALBERT:
        share_layers(model)
    return model


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def count_parameters(model: nn.Module) -> ParameterCount:
    """Tied weights count once."""
    return ParameterCount(
        total=sum(_num_weights(parameter) for parameter in model.parameters()),
        trainable=sum(_num_weights(parameter) for parameter in trainable_parameters(model)),
    )


def _num_weights(parameter: nn.Parameter) -> int:
    quant_state = getattr(parameter, "quant_state", None)  # of bitsandbytes, which keeps two weights in a byte
    return parameter.numel() if quant_state is None else quant_state.shape.numel()


def transformer(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a peft wrapper, or the model itself."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def _tensor(view: View) -> Tensor:
    if view.dtype not in DTYPES:
        raise ConfigError(
            f"the base model has weights of type {view.dtype}", hint=f"{', '.join(DTYPES)} can be trained"
        )
    return torch.frombuffer(view.data, dtype=DTYPES[view.dtype]).view(view.shape)
