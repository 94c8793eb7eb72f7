"""What a config.json may say: of each field that is known, its kind and its bounds.

Models that exist are far inside.  What is outside would take the memory or the time of whoever builds such a model.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from deepseek_trainer.base_model.rotary import POSITIONS, are_positions
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import number, shown

WHERE: Final = "the base model's config.json"
_HINT: Final = "take it from the model's own release"
_WHOLE: Final[Mapping[str, tuple[int, int]]] = {
    "num_hidden_layers": (1, 4096),
    "num_attention_heads": (1, 1 << 16),
    "num_key_value_heads": (1, 1 << 16),
    "head_dim": (1, 1 << 16),
    "hidden_size": (1, 1 << 20),
    "intermediate_size": (1, 1 << 24),
    "vocab_size": (1, 1 << 26),
    "max_position_embeddings": (1, 1 << 40),
    "num_channels": (1, 1 << 12),
    "embedding_size": (1, 1 << 20),
    "num_groups": (1, 1 << 20),
    "encoder_stride": (1, 1 << 16),
    "output_stride": (1, 1 << 16),
    "sliding_window": (0, 1 << 40),
    "max_window_layers": (0, 1 << 16),
    "num_labels": (0, 1 << 20),
    "n_layer": (1, 4096),
    "n_head": (1, 1 << 16),
    "n_embd": (1, 1 << 20),
    "n_inner": (1, 1 << 24),
    "n_positions": (1, 1 << 40),
    "kv_lora_rank": (1, 1 << 20),
    "q_lora_rank": (1, 1 << 20),
    "qk_nope_head_dim": (1, 1 << 16),
    "qk_rope_head_dim": (1, 1 << 16),
    "v_head_dim": (1, 1 << 16),
    "num_experts": (1, 1 << 14),
    "num_local_experts": (1, 1 << 14),
    "n_routed_experts": (1, 1 << 14),
    "n_shared_experts": (1, 1 << 10),
    "num_experts_per_tok": (1, 1 << 14),
    "moe_intermediate_size": (1, 1 << 24),
    "shared_expert_intermediate_size": (1, 1 << 24),
    "first_k_dense_replace": (0, 4096),
    "decoder_sparse_step": (1, 4096),
    "moe_layer_freq": (1, 4096),
    "n_group": (1, 1 << 14),
    "topk_group": (1, 1 << 14),
    "num_nextn_predict_layers": (0, 64),
}
_MOST: Final[Mapping[str, float]] = {
    "rms_norm_eps": 1,
    "layer_norm_eps": 1,
    "initializer_range": 1e3,
    "attention_dropout": 1,
    "hidden_dropout_prob": 1,
    "attention_probs_dropout_prob": 1,
    "drop_path_rate": 1,
    "rope_theta": 1e15,
    "width_factor": 64,
    "query_pre_attn_scalar": 1e9,
    "attn_logit_softcapping": 1e9,
    "final_logit_softcapping": 1e9,
    "logit_scale": 1e9,
    "logits_scaling": 1e9,
    "embedding_multiplier": 1e9,
    "residual_multiplier": 1e9,
    "attention_multiplier": 1e9,
    "routed_scaling_factor": 1e3,
    "router_aux_loss_coef": 1e3,
    "router_jitter_noise": 1,
}
_SWITCHES: Final = (
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "qkv_bias",
    "use_sliding_window",
    "use_cache",
    "norm_topk_prob",
    "output_router_logits",
    "rope_interleave",
)
_SIDES: Final = ("image_size", "patch_size")
_WIDTHS: Final = ("hidden_sizes", "depths")
_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_POSITIONS: Final = ("rope_parameters", "rope_scaling")
_ACTS: Final = ("hidden_act", "hidden_activation", "activation_function")
_NAMES: Final = (
    "model_type",
    "torch_dtype",
    "dtype",
    "layer_type",
    "global_padding",
    "topk_method",
    "scoring_func",
)
ACTIVATIONS: Final = (  # those of transformers
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu"),
    *("relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu"),
)
_MOST_STAGES: Final = 64
_MOST_SIDE: Final = 1 << 16
_MOST_TOKEN: Final = 1 << 26

Rule = tuple[str, Callable[[Any], bool]]  # in words, and as a test


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _whole(least: int, most: int) -> Rule:
    return f"a whole number from {least} to {most:,}", lambda value: _is_whole(value, least, most)


def _number(most: float) -> Rule:
    return f"a number from 0 to {most:,}", lambda value: 0 <= (-1 if (n := number(value)) is None else n) <= most


def _is_side(value: object) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(_is_whole(side, 1, _MOST_SIDE) for side in sides)


def _are_widths(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= _MOST_STAGES and all(_is_whole(n, 1, 1 << 20) for n in value)


def _are_tokens(value: object) -> bool:
    tokens = value if isinstance(value, list) else [value]
    return len(tokens) <= 1 << 10 and all(_is_whole(token, -1, _MOST_TOKEN) for token in tokens)


def _are_layers(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 4096 and all(_is_whole(n, 0, 4095) for n in value)


def _are_words(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 4096 and all(isinstance(word, str) for word in value)


def _are_labels(value: object) -> bool:
    """As the JSON of `{0: "cat"}` has it."""
    if not isinstance(value, dict) or len(value) > 1 << 20:
        return False
    return all(key.isascii() and key.isdigit() and len(key) < 9 and isinstance(value[key], str) for key in value)


def _rules() -> dict[str, Rule]:
    named: dict[str, Rule] = {name: _whole(*bounds) for name, bounds in _WHOLE.items()}
    named |= {name: _number(most) for name, most in _MOST.items()}
    named |= dict.fromkeys(_SWITCHES, ("true or false", lambda value: isinstance(value, bool)))
    named |= dict.fromkeys(_SIDES, (f"one or two whole numbers from 1 to {_MOST_SIDE:,}", _is_side))
    named |= dict.fromkeys(_WIDTHS, (f"1 to {_MOST_STAGES} whole numbers from 1", _are_widths))
    named |= dict.fromkeys(_TOKENS, ("the number of a token, or a list of them", _are_tokens))
    named |= dict.fromkeys(_POSITIONS, (POSITIONS, are_positions))
    named["label2id"] = ("an object", lambda value: isinstance(value, dict))
    named |= dict.fromkeys(_NAMES, ("a word", lambda value: isinstance(value, str) and len(value) <= 100))
    named |= dict.fromkeys(_ACTS, ("the name of an activation", lambda value: value in ACTIVATIONS))
    named["layer_types"] = ("a list with a word for each layer", _are_words)
    named["mlp_only_layers"] = ("a list of the numbers of layers", _are_layers)
    return named | {"id2label": ("an object with a name for each number", _are_labels)}


RULES: Final[Mapping[str, Rule]] = _rules()


def refuse_out_of_bounds(settings: Mapping[str, Any], where: str = WHERE) -> None:
    """Raises ConfigError at the first known field whose value is none.  One that is null or missing has its default."""
    for name in RULES:
        _refuse(settings, name, where)


def size(settings: Mapping[str, Any], name: str) -> int:
    """A whole number that config.json must have.  Raises ConfigError where it has none, or one out of bounds."""
    found = optional_size(settings, name)
    if found is None:
        raise ConfigError(f"{WHERE} lacks {name}", hint=_HINT)
    return found


def optional_size(settings: Mapping[str, Any], name: str) -> int | None:
    """As `size`, but None where config.json is silent."""
    _refuse(settings, name, WHERE)
    found: int | None = settings.get(name)
    return found


def _refuse(settings: Mapping[str, Any], name: str, where: str) -> None:
    value, (words, holds) = settings.get(name), RULES[name]
    if value is not None and not holds(value):
        raise ConfigError(f"{where} has {name} {shown(value)}: it must be {words}", hint=_HINT)
