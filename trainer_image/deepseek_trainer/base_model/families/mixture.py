"""Families with Llama's attention and a mixture of experts: Qwen2-MoE, Qwen3-MoE, Mixtral."""

from collections.abc import Callable
from functools import partial
from typing import Final

from deepseek_trainer.base_model import decoder, experts
from deepseek_trainer.base_model.bounds import optional_size, size
from deepseek_trainer.base_model.decoder import ATTENTION, FEED_FORWARD, HEAD_NORMS, OUTPUT, Settings
from deepseek_trainer.base_model.families.family import Family
from deepseek_trainer.base_model.families.seen import by_layer, everywhere
from deepseek_trainer.budget.dimensions import Dimensions, Linear

SHARED: Final = "mlp.shared_expert"
_COUNTS: Final = ("num_experts", "num_local_experts")  # as releases have it, and as transformers saves it
_SHARED: Final = tuple(f"{SHARED}.{name}_proj" for name in ("gate", "up", "down"))
_NAMES: Final = experts.FileNames()
_MIXTRAL_NAMES: Final = experts.FileNames("block_sparse_moe", "w1", "w3", "w2")
_Attention = Callable[[Settings], Dimensions]  # of a dense model with the same attention


def _sparse(dense: Dimensions, settings: Settings, numbers: tuple[int, ...], field: str) -> Dimensions:
    """`dense`, but with experts in the blocks of these numbers; `field` has their width."""
    width, used, hidden = size(settings, field), size(settings, "num_experts_per_tok"), dense.hidden
    shared = optional_size(settings, "shared_expert_intermediate_size") if field != "intermediate_size" else None
    layers = tuple(layer for layer in dense.linear if layer.path in ATTENTION)
    if shared is not None:
        layers += experts.feed_forward(SHARED, hidden, shared)
        layers += (Linear("mlp.shared_expert_gate", hidden, 1, "feed-forward", is_gate=True),)
    layers += experts.routed(hidden, experts.first_of(settings, *_COUNTS), used, width)
    return dense.with_sparse(numbers, layers, (shared or 0) + used * width)


def _qwen_numbers(settings: Settings) -> tuple[int, ...]:
    step, plain = optional_size(settings, "decoder_sparse_step") or 1, settings.get("mlp_only_layers") or ()
    every = range(size(settings, "num_hidden_layers"))
    return tuple(number for number in every if number not in plain and (number + 1) % step == 0)


def _qwen2(settings: Settings) -> Dimensions:
    biased = ATTENTION[:3] if settings.get("qkv_bias", True) else ()
    dense = decoder.dimensions(settings, key_value_heads=16, head_dim=None, biased=lambda _: biased, head_norms=())
    return _sparse(dense, settings, _qwen_numbers(settings), "moe_intermediate_size")


def _qwen3(settings: Settings) -> Dimensions:
    biased = ATTENTION if settings.get("attention_bias") else ()
    dense = decoder.dimensions(
        settings, key_value_heads=4, head_dim=None, biased=lambda _: biased, head_norms=HEAD_NORMS
    )
    unshared = {name: value for name, value in settings.items() if name != "shared_expert_intermediate_size"}
    return _sparse(dense, unshared, _qwen_numbers(settings), "moe_intermediate_size")


def _mixtral(settings: Settings) -> Dimensions:
    dense = decoder.dimensions(settings, key_value_heads=8, head_dim=None, biased=lambda _: (), head_norms=())
    return _sparse(dense, settings, tuple(range(dense.layers)), "intermediate_size")


def _family(
    model_type: str, model_class: str, dimensions: _Attention, names: experts.FileNames = _NAMES, **parts: object
) -> Family:
    settings: dict[str, object] = {
        "embedding": "model.embed_tokens",
        "blocks": "model.layers.*",
        "head": "lm_head",
        "linear": ATTENTION + FEED_FORWARD,
        "experts": experts.EXPERTS,
        "router": experts.ROUTER,
        "residual": (OUTPUT, "mlp"),
        "own_dropout": ("model.layers.*.self_attn.attention_dropout",),
        "windows": everywhere,
    }
    make: Callable[..., Family] = partial(Family, model_type, model_class, dimensions=dimensions)
    return make(weights=lambda config: experts.weights(dimensions(config), names), **settings | parts)


# Defaults are those of transformers' configuration_{qwen2_moe,qwen3_moe,mixtral}.py.
ENTRIES: Final = (
    _family("qwen2_moe", "Qwen2MoeForCausalLM", _qwen2, windows=by_layer, linear=ATTENTION + FEED_FORWARD + _SHARED),
    _family("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3, peft_renames=True),
    _family(
        "mixtral",
        "MixtralForCausalLM",
        _mixtral,
        _MIXTRAL_NAMES,
        linear=ATTENTION,
        own_dropout=("model.layers.*.self_attn.attention_dropout", "model.layers.*.mlp.jitter_noise"),
    ),
)
