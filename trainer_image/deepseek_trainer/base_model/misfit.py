"""Whether a base model can be trained as the job asks: found from its config.json, before its weights are read."""

from deepseek_trainer.base_model.bounds import WHERE, refuse_out_of_bounds
from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.base_model.families import FAMILIES, family_of, last_names, read_dimensions
from deepseek_trainer.base_model.families.family import Family
from deepseek_trainer.budget.dimensions import Dimensions, target_names
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.export import ExportFormat
from deepseek_trainer.contract.images import ImagesSpec
from deepseek_trainer.contract.method import ALL_LINEAR, NF4_BLOCK, LoraSpec, MethodSpec, MethodType
from deepseek_trainer.contract.optimization import Optimizer


def refuse_misfit(config: TrainingConfig, settings: Settings) -> None:
    """Raises ConfigError where it cannot; `settings`: the content of the base model's config.json."""
    refuse_out_of_bounds(settings)
    family, method = family_of(settings.get("model_type")), config.method
    _refuse_variants(family, settings)
    _refuse_other_records(config, family)
    if config.data.images is not None:
        _refuse_other_images(config.data.images, settings)
    if family.dimensions is not None:
        _refuse_uneven(family.dimensions(settings))
    _refuse_long_rows(config.data.sequence_length, settings.get("max_position_embeddings", settings.get("n_positions")))
    if config.optimization.dropout:
        family.residual_for("optimization.dropout")
    if method.type is not MethodType.FULL:
        _refuse_unknown_targets(method, family, settings)
        _refuse_lost_adapters(config, family, settings)
    if config.optimization.optimizer is Optimizer.MUON and family.experts:
        _refuse_stacks(family)
    if method.type is MethodType.QLORA:
        _refuse_transposed(family)
        _refuse_split_blocks(read_dimensions(settings))


def _refuse_variants(family: Family, settings: Settings) -> None:
    family.windows(settings)  # raises where some layers see what nobody knows
    if on := [name for name in family.switches if settings.get(name)]:
        raise ConfigError(
            f"{WHERE} sets {on[0]}: {family.model_type} models with it are built otherwise than those that the trainer "
            "knows",
            hint="take a model without it, or train it elsewhere",
        )


def _refuse_transposed(family: Family) -> None:
    if family.is_transposed:
        raise ConfigError(
            f"method.type QLoRA: {family.model_type} models hold their weights transposed, which four bits cannot",
            hint="set method.type: LoRA",
        )


def _refuse_other_records(config: TrainingConfig, family: Family) -> None:
    has_images = config.data.images is not None
    if family.sees_images is has_images:
        return
    known = [each.model_type for each in FAMILIES.values() if each.sees_images is has_images]
    raise ConfigError(
        f"model.base is a {family.model_type} model: it cannot read data.format {config.data.format}",
        hint=f"models of type {', '.join(known)} can",
    )


def _refuse_other_images(images: ImagesSpec, settings: Settings) -> None:
    channels, side = settings.get("num_channels", 3), settings.get("image_size")
    if channels != images.channels:
        raise ConfigError(
            f"data.images.channels={images.channels}: the base model takes images of {channels} channels",
            hint=f"set data.images.channels: {channels}",
        )
    height, width = side if isinstance(side, list) else (side, side)
    if side is not None and (height, width) != (images.height, images.width):
        raise ConfigError(
            f"data.images are {images.height} x {images.width} pixels: the base model takes {height} x {width}",
            hint=f"set data.images.height: {height} and data.images.width: {width}",
        )


def _refuse_uneven(dimensions: Dimensions) -> None:
    """What transformers finds out in the first step of training."""
    heads, key_value_heads, hint = dimensions.heads, dimensions.key_value_heads, "take it from the model's own release"
    if heads % key_value_heads:
        raise ConfigError(
            f"{WHERE} has {heads} heads over {key_value_heads} of keys and values: it must be a multiple", hint=hint
        )
    if dimensions.head_dim % 2:
        raise ConfigError(
            f"{WHERE} has heads of {dimensions.head_dim}: positions are rotated in pairs, so it must be even", hint=hint
        )


def _refuse_long_rows(length: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        raise ConfigError(
            f"data.sequenceLength={length} is longer than the base model's {longest} positions",
            hint=f"lower data.sequenceLength to {longest}, or take a model for longer texts",
        )


def _refuse_unknown_targets(method: MethodSpec, family: Family, settings: Settings) -> None:
    paths, lora = family.linear_for(f"method.type {method.type}"), method.lora or LoraSpec()
    known = family.dimensions(settings).adaptable if family.dimensions else tuple(last_names(paths))
    wanted = target_names(lora, known)
    if unknown := [name for name in wanted if name not in (*known, ALL_LINEAR)]:
        raise ConfigError(
            f"method.lora.targetModules: the model has no linear layer {', '.join(unknown)}",
            hint=f"it has {', '.join(known)}",
        )
    stacks = [name for name in wanted if name in family.stacks]
    if stacks and lora.dropout:
        raise ConfigError(
            f"method.lora.dropout={lora.dropout} with targetModules {', '.join(stacks)}: adapters of experts are "
            "added to their weights, so nothing of what they read can be dropped",
            hint="set method.lora.dropout: 0, or drop the experts from targetModules",
        )


def _refuse_lost_adapters(config: TrainingConfig, family: Family, settings: Settings) -> None:
    """What peft would look for among the experts when it loads the adapter."""
    lora = config.method.lora or LoraSpec()
    if ExportFormat.ADAPTER not in config.export.formats or not family.peft_renames or family.dimensions is None:
        return
    kinds, dimensions = family.dimensions(settings).kinds, family.dimensions(settings)
    adapted = {layer.name for kind in kinds for layer in dimensions.targets(lora, kind.linear)}
    if lost := sorted(adapted & {"gate_proj", "up_proj", "down_proj"}):
        raise ConfigError(
            f"export.formats Adapter with targetModules {', '.join(lost)}: of a {family.model_type} model peft takes "
            "these for its routed experts, and could not load the adapter again",
            hint="set export.formats: [Merged], or name the layers of attention in method.lora.targetModules",
        )


def _refuse_stacks(family: Family) -> None:
    raise ConfigError(
        f"optimization.optimizer Muon takes matrices, and {family.model_type} models keep those of experts in stacks",
        hint="set optimization.optimizer: AdamW",
    )


def _refuse_split_blocks(dimensions: Dimensions) -> None:
    """bitsandbytes's AVX-512 kernel takes wrong scales where a block of NF4 goes on in the next row."""
    for layer in (layer for kind in dimensions.kinds for layer in kind.linear if layer.is_plain):
        if layer.inputs % NF4_BLOCK:
            raise ConfigError(
                f"method.type QLoRA keeps weights in blocks of {NF4_BLOCK}, and the model's {layer.name} has "
                f"{layer.inputs} inputs",
                hint="set method.type: LoRA",
            )
