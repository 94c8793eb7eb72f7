"""Families of dense decoders that are like Llama's but for some of their parts.

Defaults are those of transformers' configuration files: what it assumes where a config.json is silent.
"""

from typing import Any, Final

from deepseek_trainer.base_model.bounds import size
from deepseek_trainer.base_model.decoder import (
    ATTENTION,
    FEED_FORWARD,
    OUTPUT,
    Layer,
    Outline,
    Settings,
    Widths,
    fused_attention,
    fused_feed_forward,
    split_attention,
)
from deepseek_trainer.base_model.families.family import Logits
from deepseek_trainer.base_model.families.llama import ATTENTION_DROPOUT, llama_like
from deepseek_trainer.base_model.families.seen import SLIDING, by_layer, cost_by_layer, everywhere
from deepseek_trainer.budget.dimensions import ATTENDED

_GEMMA_NORMS: Final = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_GLM4_NORMS: Final = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
_AFTER: Final = ("post_attention_layernorm", "post_feedforward_layernorm")  # norms of what is added to the stream
_EAGER: Final = 5  # bytes of a mask for a pair of positions: bool, and the number that is added to a score


def _qkv(settings: Settings) -> tuple[str, ...]:
    return ATTENTION[:3] if settings.get("attention_bias", True) else ()


def _attention(settings: Settings) -> tuple[str, ...]:
    return ATTENTION if settings.get("attention_bias") else ()


def _all(settings: Settings) -> tuple[str, ...]:
    return _attention(settings) + (FEED_FORWARD if settings.get("mlp_bias") else ())


def _fused_feed_forward(w: Widths) -> dict[str, Layer]:
    return split_attention(w) | fused_feed_forward(w)


def _fused(w: Widths) -> dict[str, Layer]:
    return fused_attention(w) | fused_feed_forward(w)


def _softcapped(settings: Settings) -> Logits:
    return Logits(softcap=settings.get("final_logit_softcapping"))


def _gemma2_cost(settings: Settings) -> dict[str, Any]:
    """Scores are capped, which no attention that is computed in one go can do."""
    kinds = 2 if SLIDING in (settings.get("layer_types") or (SLIDING,)) else 1
    return {"mask_bytes": kinds * _EAGER, "keeps_scores": True}


_GPT2: Final = Outline(
    "transformer.wte",
    "transformer.h",
    "transformer.ln_f",
    positions="transformer.wpe",
    norms_have_bias=True,
    is_transposed=True,
)
_PHI: Final = Outline(norm="model.final_layernorm", norms_have_bias=True, head_has_bias=True)


def _gpt2_layers(w: Widths) -> dict[str, Layer]:
    inner = w.intermediate
    return {
        "attn.c_attn": (w.hidden, w.queries + 2 * w.keys, "attention"),
        "attn.c_proj": (w.queries, w.hidden, ATTENDED),
        "mlp.c_fc": (w.hidden, inner, "feed-forward"),
        "mlp.c_proj": (inner, w.hidden, "product"),
    }


def _phi_layers(w: Widths) -> dict[str, Layer]:
    """Attention and feed-forward read the same normalised states."""
    query, key, value, _ = split_attention(w).items()
    return dict((query, key, value)) | {
        "self_attn.dense": (w.queries, w.hidden, ATTENDED),
        "mlp.fc1": (w.hidden, w.intermediate, "attention"),
        "mlp.fc2": (w.intermediate, w.hidden, "product"),
    }


def _starcoder2_layers(w: Widths) -> dict[str, Layer]:
    return split_attention(w) | {
        "mlp.c_fc": (w.hidden, w.intermediate, "feed-forward"),
        "mlp.c_proj": (w.intermediate, w.hidden, "product"),
    }


def _phi_biased(_: Settings) -> tuple[str, ...]:
    return tuple(_phi_layers(Widths(0, 0, 0, 0)))


def _gpt2_usual(settings: Settings) -> Settings:
    names = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    }
    named = {ours: settings.get(theirs) for ours, theirs in names.items()}
    inner = named["intermediate_size"] or 4 * size({"hidden_size": named["hidden_size"]}, "hidden_size")
    return {**settings, **named, "intermediate_size": inner, "num_key_value_heads": None, "head_dim": None}


def _gpt2_biased(_: Settings) -> tuple[str, ...]:
    return tuple(_gpt2_layers(Widths(0, 0, 0, 0)))


def _starcoder2_biased(settings: Settings) -> tuple[str, ...]:
    return tuple(_starcoder2_layers(Widths(0, 0, 0, 0))) if settings.get("use_bias", True) else ()


ENTRIES: Final = (
    llama_like("mistral", "MistralForCausalLM", key_value_heads=8, windows=everywhere),
    llama_like("ministral", "MinistralForCausalLM", key_value_heads=8, windows=by_layer, cost=cost_by_layer),
    llama_like(
        "smollm3",
        "SmolLM3ForCausalLM",
        key_value_heads=4,
        biased=_all,
        tied=True,
        windows=by_layer,
        cost=cost_by_layer,
    ),
    llama_like(
        "gemma",
        "GemmaForCausalLM",
        key_value_heads=16,
        head_dim=256,
        biased=_attention,
        tied=True,
        switches=("use_bidirectional_attention",),
    ),
    llama_like(
        "gemma2",
        "Gemma2ForCausalLM",
        key_value_heads=4,
        head_dim=256,
        biased=_attention,
        norms=_GEMMA_NORMS,
        residual=_AFTER,
        tied=True,
        windows=by_layer,
        logits=_softcapped,
        cost=_gemma2_cost,
        switches=("use_bidirectional_attention",),
    ),
    llama_like(
        "gemma3_text",
        "Gemma3ForCausalLM",
        key_value_heads=4,
        head_dim=256,
        biased=_attention,
        has_head_norms=True,
        norms=_GEMMA_NORMS,
        residual=_AFTER,
        tied=True,
        windows=by_layer,
        logits=_softcapped,
        cost=cost_by_layer,
        switches=("use_bidirectional_attention",),
    ),
    llama_like(
        "phi3",
        "Phi3ForCausalLM",
        layers=_fused,
        own_dropout=(ATTENTION_DROPOUT, "BLOCK.resid_attn_dropout.p", "BLOCK.resid_mlp_dropout.p"),
        windows=everywhere,
    ),
    llama_like("glm", "GlmForCausalLM", key_value_heads=2, head_dim=128, biased=_qkv, layers=_fused_feed_forward),
    llama_like(
        "glm4",
        "Glm4ForCausalLM",
        key_value_heads=2,
        head_dim=128,
        biased=_qkv,
        layers=_fused_feed_forward,
        norms=_GLM4_NORMS,
        residual=("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    llama_like(
        "granite",
        "GraniteForCausalLM",
        biased=_all,
        logits=lambda settings: Logits(scale=1 / settings["logits_scaling"]),
    ),
    llama_like("olmo", "OlmoForCausalLM", biased=_attention, outline=Outline(norms_learn=False)),
    llama_like(
        "olmo2",
        "Olmo2ForCausalLM",
        biased=_attention,
        has_head_norms=True,
        norms=_AFTER,
        residual=_AFTER,
        outline=Outline(wide_head_norms=True),
    ),
    llama_like(
        "stablelm",
        "StableLmForCausalLM",
        key_value_heads=32,
        biased=lambda settings: ATTENTION[:3] if settings.get("use_qkv_bias") else (),
        outline=Outline(norms_have_bias=True),
        own_dropout=(ATTENTION_DROPOUT, "BLOCK.dropout.p"),
        switches=("qk_layernorm", "use_parallel_residual"),
    ),
    llama_like(
        "phi",
        "PhiForCausalLM",
        biased=_phi_biased,
        layers=_phi_layers,
        norms=("input_layernorm",),
        residual=("self_attn.dense", "mlp.fc2"),
        outline=_PHI,
        own_dropout=(ATTENTION_DROPOUT, "BLOCK.resid_dropout.p", "model.embed_dropout.p"),
        switches=("qk_layernorm",),
    ),
    llama_like(
        "starcoder2",
        "Starcoder2ForCausalLM",
        key_value_heads=2,
        biased=_starcoder2_biased,
        layers=_starcoder2_layers,
        residual=(OUTPUT, "mlp.c_proj"),
        outline=Outline(norms_have_bias=True),
        tied=True,
        own_dropout=(
            ATTENTION_DROPOUT,
            "BLOCK.self_attn.residual_dropout",
            "BLOCK.mlp.residual_dropout",
            "model.embedding_dropout",
        ),
        windows=everywhere,
    ),
    llama_like(
        "cohere",
        "CohereForCausalLM",
        biased=_attention,
        norms=("input_layernorm",),
        tied=True,
        logits=lambda settings: Logits(scale=settings["logit_scale"]),
        switches=("use_qk_norm",),
    ),
    llama_like(
        "gpt2",
        "GPT2LMHeadModel",
        biased=_gpt2_biased,
        layers=_gpt2_layers,
        norms=("ln_1", "ln_2"),
        residual=("attn.c_proj", "mlp.c_proj"),
        outline=_GPT2,
        tied=True,
        embedded="transformer.drop",
        own_dropout=(
            "transformer.drop.p",
            "BLOCK.attn.attn_dropout.p",
            "BLOCK.attn.resid_dropout.p",
            "BLOCK.mlp.dropout.p",
        ),
        usual=_gpt2_usual,
        switches=("reorder_and_upcast_attn", "add_cross_attention"),
        old_buffers=(".attn.bias", ".attn.masked_bias"),
    ),
)
