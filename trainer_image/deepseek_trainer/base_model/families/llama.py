"""Families whose blocks are Llama's: attention of four linear layers, a feed-forward of three."""

from collections.abc import Callable
from functools import partial
from typing import Final

from deepseek_trainer.base_model import decoder
from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.base_model.families.family import Family, Rotary


def llama_like(
    model_type: str,
    model_class: str,
    *,
    key_value_heads: int | None = None,
    head_dim: int | None = None,
    biased: Callable[[Settings], tuple[str, ...]] = lambda _: (),
    has_head_norms: bool = False,
    rotary_in_gguf: Rotary | None = None,
) -> Family:
    """An entry for a decoder whose blocks are Llama's: attention of four linear layers, a feed-forward of three.

    `key_value_heads` and `head_dim` are what transformers assumes where config.json is silent; None: as many as heads,
    and an equal part of the hidden states for each head.  `biased` names the linear layers with a bias.
    """
    dimensions = partial(
        decoder.dimensions,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        biased=biased,
        head_norms=decoder.HEAD_NORMS if has_head_norms else (),
    )
    return Family(
        model_type,
        model_class,
        embedding="model.embed_tokens",
        blocks="model.layers.*",
        head="lm_head",
        linear=decoder.ATTENTION + decoder.FEED_FORWARD,
        residual=(decoder.OUTPUT, decoder.DOWN),
        own_dropout=("model.layers.*.self_attn.attention_dropout",),
        dimensions=dimensions,
        weights=lambda settings: decoder.weights(dimensions(settings)),
        rotary_in_gguf=rotary_in_gguf,
    )


def _biased_attention(settings: Settings) -> tuple[str, ...]:
    return decoder.ATTENTION if settings.get("attention_bias") else ()


def _llama_biased(settings: Settings) -> tuple[str, ...]:
    return _biased_attention(settings) + (decoder.FEED_FORWARD if settings.get("mlp_bias") else ())


# Defaults are those of transformers' configuration_{llama,qwen2,qwen3}.py.
ENTRIES: Final = (
    llama_like("llama", "LlamaForCausalLM", biased=_llama_biased, rotary_in_gguf=Rotary.INTERLEAVED),
    llama_like(
        "qwen2",
        "Qwen2ForCausalLM",
        key_value_heads=32,
        biased=lambda _: decoder.ATTENTION[:3],
        rotary_in_gguf=Rotary.APART,
    ),
    llama_like(
        "qwen3",
        "Qwen3ForCausalLM",
        key_value_heads=32,
        head_dim=128,
        biased=_biased_attention,
        has_head_norms=True,
        rotary_in_gguf=Rotary.APART,
    ),
)
