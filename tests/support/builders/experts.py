"""Tiny models with a mixture of experts: two layers, four experts, two of them for each token."""

from typing import Any, Final

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from deepseek_trainer.model.experts import compute_by_autocast
from support.builders.model import VOCAB

_SHAPE: Final = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
}
_LATENT: Final = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_GROUPED: Final = {"num_key_value_heads": 2, "num_experts": 4, "moe_intermediate_size": 16}
_MIXTRAL: Final = {"num_key_value_heads": 2, "num_local_experts": 4}
_MODELS: Final[dict[str, tuple[Any, Any, dict[str, Any]]]] = {
    "deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM, _LATENT),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM, _LATENT),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, _GROUPED | {"shared_expert_intermediate_size": 24}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, _GROUPED | {"head_dim": 8}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, _MIXTRAL),
}
KINDS: Final = tuple(_MODELS)


def a_mixture(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Weights are large enough to have opinions."""
    settings, model, shape = _MODELS[kind]
    torch.manual_seed(seed)
    made: PreTrainedModel = model(settings(**_SHAPE | shape | changes)).eval()
    compute_by_autocast(made)
    return made
