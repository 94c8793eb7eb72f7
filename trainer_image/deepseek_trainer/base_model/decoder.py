"""The shape of Llama's blocks, which many families share: attention of four linear layers, a feed-forward of three."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from deepseek_trainer.base_model.bounds import optional_size, size
from deepseek_trainer.budget.dimensions import ATTENDED, Dimensions, Linear

Settings = Mapping[str, Any]  # the content of a config.json
Shape = tuple[int, ...]

QUERY, KEY, VALUE, OUTPUT = (f"self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
ATTENTION: Final = (QUERY, KEY, VALUE, OUTPUT)
FEED_FORWARD: Final = (GATE, UP, DOWN)
HEAD_NORMS: Final = ("self_attn.q_norm", "self_attn.k_norm")


def dimensions(
    settings: Settings,
    *,
    key_value_heads: int | None,
    head_dim: int | None,
    biased: Callable[[Settings], tuple[str, ...]],
    head_norms: tuple[str, ...],
) -> Dimensions:
    """Raises ConfigError where config.json lacks one, or has one that no model has."""
    heads, hidden, intermediate = (
        size(settings, name) for name in ("num_attention_heads", "hidden_size", "intermediate_size")
    )
    narrow = optional_size(settings, "num_key_value_heads") or key_value_heads or heads
    width = optional_size(settings, "head_dim") or head_dim or hidden // heads
    return Dimensions(
        hidden=hidden,
        layers=size(settings, "num_hidden_layers"),
        heads=heads,
        key_value_heads=narrow,
        head_dim=width,
        intermediate=intermediate,
        vocab=size(settings, "vocab_size"),
        tied=bool(settings.get("tie_word_embeddings")),
        linear=_linear(hidden, heads * width, narrow * width, intermediate, biased(settings)),
        norms=("input_layernorm", "post_attention_layernorm"),
        head_norms=head_norms,
    )


def _linear(hidden: int, queries: int, keys: int, intermediate: int, biased: tuple[str, ...]) -> tuple[Linear, ...]:
    layers = {
        QUERY: (hidden, queries, "attention"),
        KEY: (hidden, keys, "attention"),
        VALUE: (hidden, keys, "attention"),
        OUTPUT: (queries, hidden, ATTENDED),
        GATE: (hidden, intermediate, "feed-forward"),
        UP: (hidden, intermediate, "feed-forward"),
        DOWN: (intermediate, hidden, "product"),
    }
    return tuple(Linear(path, *shape, has_bias=path in biased) for path, shape in layers.items())


def weights(d: Dimensions) -> dict[str, Shape]:
    embeddings = (d.vocab, d.hidden)
    made: dict[str, Shape] = {
        "model.embed_tokens.weight": embeddings,
        "lm_head.weight": embeddings,
        "model.norm.weight": (d.hidden,),
    }
    block: dict[str, Shape] = {f"{norm}.weight": (d.hidden,) for norm in d.norms}
    block |= {f"{norm}.weight": (d.head_dim,) for norm in d.head_norms}
    block |= {f"{layer.path}.weight": (layer.outputs, layer.inputs) for layer in d.linear}
    block |= {f"{layer.path}.bias": (layer.outputs,) for layer in d.linear if layer.has_bias}
    return made | {f"model.layers.{i}.{name}": shape for i in range(d.layers) for name, shape in block.items()}
