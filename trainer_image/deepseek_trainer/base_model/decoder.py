"""The shape of Llama's blocks, which many families share: attention of four linear layers, a feed-forward of three."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from deepseek_trainer.base_model.bounds import optional_size, size
from deepseek_trainer.budget.dimensions import ATTENDED, Dimensions, Linear

Settings = Mapping[str, Any]  # the content of a config.json
Shape = tuple[int, ...]

QUERY, KEY, VALUE, OUTPUT = (f"self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"  # several in one, where a family has them so
ATTENTION: Final = (QUERY, KEY, VALUE, OUTPUT)
FEED_FORWARD: Final = (GATE, UP, DOWN)
HEAD_NORMS: Final = ("self_attn.q_norm", "self_attn.k_norm")
NORMS: Final = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, slots=True)
class Widths:
    """Of what a block's linear layers read and make [elements]."""

    hidden: int
    queries: int
    keys: int  # of all heads of keys, and of values
    intermediate: int


NO_WIDTHS: Final = Widths(0, 0, 0, 0)  # for the names of layers alone


@dataclass(frozen=True, slots=True)
class Outline:
    """What the files of a family hold beside linear layers, where it is not as in Llama's."""

    embedding: str = "model.embed_tokens"
    blocks: str = "model.layers"
    norm: str = "model.norm"  # the last one
    head: str = "lm_head"
    positions: str = ""  # a learned embedding of positions
    norms_learn: bool = True  # whether a norm has a weight
    norms_have_bias: bool = False
    head_has_bias: bool = False
    is_transposed: bool = False  # linear layers hold their weights as inputs x outputs
    wide_head_norms: bool = False  # over all heads at once, not over each by itself


LLAMA: Final = Outline()
Layer = tuple[int, int, str]  # widths, and which tensor it reads
Layers = Callable[[Widths], dict[str, Layer]]  # of a block, by dotted name


def split_attention(w: Widths) -> dict[str, Layer]:
    return {
        QUERY: (w.hidden, w.queries, "attention"),
        KEY: (w.hidden, w.keys, "attention"),
        VALUE: (w.hidden, w.keys, "attention"),
        OUTPUT: (w.queries, w.hidden, ATTENDED),
    }


def fused_attention(w: Widths) -> dict[str, Layer]:
    return {QKV: (w.hidden, w.queries + 2 * w.keys, "attention"), OUTPUT: (w.queries, w.hidden, ATTENDED)}


def split_feed_forward(w: Widths) -> dict[str, Layer]:
    return {
        GATE: (w.hidden, w.intermediate, "feed-forward"),
        UP: (w.hidden, w.intermediate, "feed-forward"),
        DOWN: (w.intermediate, w.hidden, "product"),
    }


def fused_feed_forward(w: Widths) -> dict[str, Layer]:
    return {GATE_UP: (w.hidden, 2 * w.intermediate, "feed-forward"), DOWN: (w.intermediate, w.hidden, "product")}


def llama_layers(w: Widths) -> dict[str, Layer]:
    return split_attention(w) | split_feed_forward(w)


def dimensions(
    settings: Settings,
    *,
    key_value_heads: int | None,
    head_dim: int | None,
    biased: Callable[[Settings], tuple[str, ...]],
    head_norms: tuple[str, ...],
    norms: tuple[str, ...] = NORMS,
    layers: Layers = llama_layers,
    tied: bool = False,
    outline: Outline = LLAMA,
) -> Dimensions:
    """Raises ConfigError where config.json lacks one, or has one that no model has."""
    heads, hidden, intermediate = (
        size(settings, name) for name in ("num_attention_heads", "hidden_size", "intermediate_size")
    )
    narrow = optional_size(settings, "num_key_value_heads") or key_value_heads or heads
    width = optional_size(settings, "head_dim") or head_dim or hidden // heads
    has_bias = biased(settings)
    found = layers(Widths(hidden, heads * width, narrow * width, intermediate))
    made = Dimensions(
        hidden=hidden,
        layers=size(settings, "num_hidden_layers"),
        heads=heads,
        key_value_heads=narrow,
        head_dim=width,
        intermediate=intermediate,
        vocab=size(settings, "vocab_size"),
        tied=is_tied(settings, by_default=tied),
        linear=tuple(Linear(path, *layer, has_bias=path in has_bias) for path, layer in found.items()),
        norms=norms,
        head_norms=head_norms,
    )
    blocks, ends = _others(made, positions(settings), outline)
    return replace(made, others=blocks, ends=ends)


def _others(d: Dimensions, places: int, outline: Outline) -> tuple[int, int]:
    """Parameters that `d` does not count by itself: of one block, and outside of blocks."""
    norm = outline.norms_have_bias - (not outline.norms_learn)  # of what a norm is taken to have
    wide = (d.heads + d.key_value_heads - len(d.head_norms)) * d.head_dim if outline.wide_head_norms else 0
    learned = places * d.hidden if outline.positions else 0
    return norm * len(d.norms) * d.hidden + wide, norm * d.hidden + learned + outline.head_has_bias * d.vocab


def positions(settings: Settings) -> int:
    """The longest text that the model is made for; 0: config.json does not say."""
    return optional_size(settings, "max_position_embeddings") or 0


def is_tied(settings: Settings, *, by_default: bool) -> bool:
    """Whether the head has the weights of the embedding."""
    told = settings.get("tie_word_embeddings")
    return by_default if told is None else bool(told)


def weights(d: Dimensions, outline: Outline = LLAMA, places: int = 0) -> dict[str, Shape]:
    """`places`: for how many positions a learned embedding has one."""
    embeddings = (d.vocab, d.hidden)
    made: dict[str, Shape] = {f"{outline.embedding}.weight": embeddings, f"{outline.head}.weight": embeddings}
    made |= _norm(outline.norm, d.hidden, outline)
    if outline.positions:
        made[f"{outline.positions}.weight"] = (places, d.hidden)
    if outline.head_has_bias:
        made[f"{outline.head}.bias"] = (d.vocab,)
    block = _block(d, outline)
    return made | {f"{outline.blocks}.{i}.{name}": shape for i in range(d.layers) for name, shape in block.items()}


def _block(d: Dimensions, outline: Outline) -> dict[str, Shape]:
    heads = (d.heads, d.key_value_heads) if outline.wide_head_norms else (1, 1)
    block: dict[str, Shape] = {}
    for norm in d.norms:
        block |= _norm(norm, d.hidden, outline)
    block |= {f"{norm}.weight": (count * d.head_dim,) for norm, count in zip(d.head_norms, heads, strict=False)}
    for layer in d.linear:
        shape = (layer.outputs, layer.inputs)
        block[f"{layer.path}.weight"] = shape[::-1] if outline.is_transposed else shape
    return block | {f"{layer.path}.bias": (layer.outputs,) for layer in d.linear if layer.has_bias}


def _norm(name: str, width: int, outline: Outline) -> dict[str, Shape]:
    parts = ("weight",) * outline.norms_learn + ("bias",) * outline.norms_have_bias
    return {f"{name}.{part}": (width,) for part in parts}
