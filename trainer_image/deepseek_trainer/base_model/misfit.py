"""Whether a base model can be trained as the job asks: found from its config.json, before its weights are read."""

from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.base_model.families import Family, family_of, last_names, read_dimensions
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import ALL_LINEAR, NF4_BLOCK, MethodSpec, MethodType


def refuse_misfit(config: TrainingConfig, settings: Settings) -> None:
    """Raises ConfigError where it cannot; `settings`: the content of the base model's config.json."""
    family, method = family_of(settings.get("model_type")), config.method
    _refuse_long_rows(config.data.sequence_length, settings.get("max_position_embeddings"))
    if config.optimization.dropout:
        family.residual_for("optimization.dropout")
    if method.type is not MethodType.FULL:
        _refuse_unknown_targets(method, family)
    if method.type is MethodType.QLORA:
        _refuse_split_blocks(read_dimensions(settings))


def _refuse_long_rows(length: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        raise ConfigError(
            f"data.sequenceLength={length} is longer than the base model's {longest} positions",
            hint=f"lower data.sequenceLength to {longest}, or take a model for longer texts",
        )


def _refuse_unknown_targets(method: MethodSpec, family: Family) -> None:
    known = last_names(family.linear_for(f"method.type {method.type}"))
    wanted = method.lora.target_modules if method.lora else ()
    if unknown := [name for name in wanted if name not in (*known, ALL_LINEAR)]:
        raise ConfigError(
            f"method.lora.targetModules: the model has no linear layer {', '.join(unknown)}",
            hint=f"it has {', '.join(known)}",
        )


def _refuse_split_blocks(dimensions: Dimensions) -> None:
    """bitsandbytes's AVX-512 kernel takes wrong scales where a block of NF4 goes on in the next row."""
    for layer in dimensions.linear:
        if layer.inputs % NF4_BLOCK:
            raise ConfigError(
                f"method.type QLoRA keeps weights in blocks of {NF4_BLOCK}, and the model's {layer.name} has "
                f"{layer.inputs} inputs",
                hint="set method.type: LoRA",
            )
