"""Families whose blocks are Llama's: attention of four linear layers, a feed-forward of three."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from deepseek_trainer.base_model import decoder
from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.base_model.families.family import Family, Rotary
from deepseek_trainer.base_model.families.seen import by_layer
from deepseek_trainer.budget.dimensions import Dimensions

ATTENTION_DROPOUT: Final = "BLOCK.self_attn.attention_dropout"


def llama_like(
    model_type: str,
    model_class: str,
    *,
    key_value_heads: int | None = None,
    head_dim: int | None = None,
    biased: Callable[[Settings], tuple[str, ...]] = lambda _: (),
    has_head_norms: bool = False,
    norms: tuple[str, ...] = decoder.NORMS,
    layers: decoder.Layers = decoder.llama_layers,
    residual: tuple[str, ...] = (decoder.OUTPUT, decoder.DOWN),
    outline: decoder.Outline = decoder.LLAMA,
    tied: bool = False,
    own_dropout: tuple[str, ...] = (ATTENTION_DROPOUT,),
    usual: Callable[[Settings], Settings] = lambda settings: settings,
    cost: Callable[[Settings], Mapping[str, Any]] = lambda _: {},
    **parts: Any,
) -> Family:
    """An entry for a decoder whose blocks are Llama's, but for what is given: attention, and a feed-forward.

    `key_value_heads`, `head_dim` and `tied` are what transformers assumes where config.json is silent; None: as many as
    heads, and an equal part of the hidden states for each head.  `biased` names the linear layers with a bias, and
    `own_dropout` rates, with BLOCK for a block.  `usual` gives a config.json the names that Llama has for its fields,
    `cost` what attention takes beyond Llama's, as `Dimensions` has it.  `parts` are further ones of `Family`.
    """
    norms_of_heads = decoder.HEAD_NORMS if has_head_norms else ()

    def dimensions(settings: Settings) -> Dimensions:
        found = decoder.dimensions(
            usual(settings),
            key_value_heads=key_value_heads,
            head_dim=head_dim,
            biased=biased,
            head_norms=norms_of_heads,
            norms=norms,
            layers=layers,
            tied=tied,
            outline=outline,
        )
        return replace(found, **cost(settings))

    return Family(
        model_type,
        model_class,
        embedding=outline.embedding,
        blocks=f"{outline.blocks}.*",
        head=outline.head,
        linear=tuple(layers(decoder.NO_WIDTHS)),
        residual=residual,
        own_dropout=tuple(path.replace("BLOCK", f"{outline.blocks}.*") for path in own_dropout),
        dimensions=dimensions,
        weights=lambda settings: decoder.weights(dimensions(settings), outline, decoder.positions(usual(settings))),
        positions=outline.positions,
        is_transposed=outline.is_transposed,
        tied=tied,
        **parts,
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
        windows=by_layer,
        rotary_in_gguf=Rotary.APART,
    ),
    llama_like(
        "qwen3",
        "Qwen3ForCausalLM",
        key_value_heads=32,
        head_dim=128,
        biased=_biased_attention,
        has_head_norms=True,
        windows=by_layer,
        rotary_in_gguf=Rotary.APART,
    ),
)
