"""Tiny models of every family, in directories like those that people bring, and entries that the table lacks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from deepseek_trainer.base_model.families.family import Family
from support.builders.model import VOCAB, a_tokenizer

RESNET = Family(
    "resnet",
    "ResNetForImageClassification",
    embedding="resnet.embedder",
    blocks="resnet.encoder.stages.*.layers.*",
    head="classifier",
)
NONE: Mapping[str, torch.dtype] = {}
# Whole blocks of NF4 in each row, and weights large enough to have opinions.
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}
# What makes a family's model differ from Llama's, by name of a variant, which begins with its model_type.
WINDOW = 5  # tokens; documents of tests are longer
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2 with windows": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {},
    "qwen3 with windows": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "mistral": {"sliding_window": None},
    "mistral with windows": {"sliding_window": WINDOW},
    "ministral": _LAYERS,
    "smollm3": {"no_rope_layers": [1, 0]},
    "gemma": {},
    "gemma2": {**_LAYERS, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_LAYERS, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    "phi3": {"sliding_window": WINDOW, "resid_pdrop": 0.5},
    "glm": {},
    "glm4": {},
    "granite": {
        "logits_scaling": 4.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "olmo": {},
    "olmo2": {},
    "stablelm": {"use_qkv_bias": True},
    "phi": {"attention_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "starcoder2": {"sliding_window": WINDOW, "residual_dropout": 0.5, "embedding_dropout": 0.5},
    "cohere": {"logit_scale": 0.25},
    "gpt2": {"attn_pdrop": 0.5, "n_inner": 128},
}
_LATENT: dict[str, Any] = {
    "head_dim": 8,
    "num_key_value_heads": 4,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
# Of families whose blocks differ: dense ones, and sparse ones with a mixture of experts.
SPARSE: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**_LATENT, "mlp_bias": True},
    "deepseek_v3": _LATENT,
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 64, "mlp_only_layers": [0]},
    "qwen2_moe with windows": {
        **_EXPERTS,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen3_moe": _EXPERTS,
    "qwen3_moe with windows": {**_EXPERTS, "use_sliding_window": True, "sliding_window": WINDOW},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "mixtral with windows": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
}


def model_type_of(variant: str) -> str:
    return variant.partition(" ")[0]


def settings_of(variant: str) -> dict[str, Any]:
    """The content of its config.json."""
    config = AutoConfig.for_model(model_type_of(variant), **_SHAPE | (VARIANTS | SPARSE)[variant])
    settings: dict[str, Any] = config.to_diff_dict()
    return settings


def a_model(variant: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Two layers, with norms and biases that are not what they begin as, either."""
    config = AutoConfig.for_model(model_type_of(variant), **{**_SHAPE, **(VARIANTS | SPARSE)[variant], **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.add_(0.01 * torch.randn_like(buffer))
    return model.eval()


def a_directory(
    path: Path, model: PreTrainedModel, dtype: torch.dtype = torch.bfloat16, odd: Mapping[str, torch.dtype] = NONE
) -> None:
    """`model` in `dtype` as its publisher would give it: with tokenizer, generation settings and licence.

    `odd`: other dtypes of some weights.
    """
    model.to(dtype).save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    save_file(
        {name: weight.to(odd.get(name, weight.dtype)) for name, weight in weights.items()},
        path / "model.safetensors",
        metadata={"format": "pt"},
    )
    a_tokenizer().save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7], "temperature": 0.6}))
    (path / "LICENSE.txt").write_text("take it and be kind")
    model.float()


def a_resnet() -> ResNetForImageClassification:
    """Two stages, of two blocks and of one."""
    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type="basic")
    )
