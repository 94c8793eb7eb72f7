"""What the config.json of a model from scratch says of its shape."""

from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.contract.model import Architecture, ArchitectureFamily


def scratch_settings(architecture: Architecture) -> Settings:
    """Of ALBERT those of a Llama, as which its result is loaded: that layers share their weights is not said there."""
    settings = {
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_key_value_heads or architecture.num_heads,
        "tie_word_embeddings": architecture.tie_embeddings,
    }
    if architecture.family is ArchitectureFamily.DEEPSEEK_V3:
        return {**settings, "model_type": "deepseek_v3", **_latent(architecture), **_experts(architecture)}
    return {**settings, "model_type": "llama"}


def _latent(architecture: Architecture) -> Settings:
    """A head is as wide as Llama's, and half as much more for positions, as in DeepSeek's own models."""
    width = architecture.hidden_size // architecture.num_heads
    return {
        "kv_lora_rank": architecture.kv_lora_rank or max(8, architecture.hidden_size // 4),
        "q_lora_rank": architecture.q_lora_rank,
        "qk_nope_head_dim": width,
        "qk_rope_head_dim": max(2, width // 4 * 2),
        "v_head_dim": width,
    }


def _experts(architecture: Architecture) -> Settings:
    experts = architecture.experts
    return {
        "n_routed_experts": experts.routed,
        "num_experts_per_tok": experts.used,
        "n_shared_experts": experts.shared,
        "moe_intermediate_size": experts.width,
        "first_k_dense_replace": experts.first_dense,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 0,
    }
