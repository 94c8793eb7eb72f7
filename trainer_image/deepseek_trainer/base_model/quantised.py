"""Refuses models whose weights are quantised, as their config.json, or the names and types of their weights, say."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from deepseek_trainer.base_model.guard import place
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown

QUANTISED: Final = {  # keys of config.json, and what says so where they do not
    "quantization_config": "quantization_config",
    "compression_config": "compressed-tensors",
    "quantization": "MLX",
}
_PARTS: Final = (  # how the names of weights end of which there are more than one for a layer
    ".qweight",
    ".qzeros",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight.absmax",
    ".weight.quant_map",
    ".SCB",
)
_HINTS: Final = {
    "fp8": "take a release in bf16, or write one: DeepSeek's fp8_cast_bf16.py, or dequantize() of transformers",
    "bitsandbytes": "take the model that it was made from: method.type QLoRA keeps its weights in four bits itself",
}
_OTHER: Final = "take the model that it was made from, which its card names; method.type QLoRA takes that in four bits"


def refuse_quantised(settings: Mapping[str, Any], source: Path) -> None:
    """Raises ConfigError where config.json says that weights are quantised."""
    for name, by_default in QUANTISED.items():
        if (said := settings.get(name)) is not None:
            raise _refusal(source, _method(said) or by_default)


def refuse_quantised_weights(keys: Iterable[str], source: Path) -> None:
    """Raises ConfigError where the names of weights are those of quantised ones."""
    for key in sorted(keys):
        if key.endswith(_PARTS):
            raise _refusal(source, shown(key, 200)[1:-1])


def _refusal(source: Path, method: str) -> ConfigError:
    return ConfigError(
        f"{place(source)} is quantised ({method}): its weights cannot be trained", hint=_HINTS.get(method, _OTHER)
    )


def _method(said: object) -> str | None:
    """The method as transformers calls it: gptq, awq, bitsandbytes, fp8, compressed-tensors."""
    if not isinstance(said, dict) or "quant_method" not in said:
        return None
    method = said["quant_method"]
    return method[:60] if isinstance(method, str) and method.isprintable() else shown(method)
