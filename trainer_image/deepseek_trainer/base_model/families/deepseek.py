"""DeepSeek's families: attention through a latent (MLA, arXiv:2405.04434), and a mixture of experts."""

from collections.abc import Callable
from functools import partial
from typing import Final

from deepseek_trainer.base_model import experts
from deepseek_trainer.base_model.bounds import WHERE, optional_size, size
from deepseek_trainer.base_model.decoder import FEED_FORWARD, OUTPUT, Settings, Shape
from deepseek_trainer.base_model.families.family import Family
from deepseek_trainer.budget.dimensions import ATTENDED, Dimensions, Linear
from deepseek_trainer.contract.errors import ConfigError

SHARED: Final = "mlp.shared_experts"
BIAS: Final = "e_score_correction_bias"
_ATTENTION: Final = tuple(
    f"self_attn.{name}" for name in ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
)
_SHARED: Final = tuple(f"{SHARED}.{name}_proj" for name in ("gate", "up", "down"))
_NAMES: Final = experts.FileNames()


def _dimensions(settings: Settings, *, first_dense: int) -> Dimensions:
    hidden, heads, layers = (
        size(settings, each) for each in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    intermediate, width = size(settings, "intermediate_size"), size(settings, "moe_intermediate_size")
    used, shared = size(settings, "num_experts_per_tok"), width * size(settings, "n_shared_experts")
    has_bias, dense = bool(settings.get("mlp_bias")), optional_size(settings, "first_k_dense_replace")
    attention, ranks = _attention(settings, hidden, heads)
    routed = experts.routed(hidden, size(settings, "n_routed_experts"), used, width)
    return Dimensions(
        hidden=hidden,
        layers=layers,
        heads=heads,
        key_value_heads=heads,
        head_dim=size(settings, "qk_nope_head_dim") + size(settings, "qk_rope_head_dim"),
        value_dim=size(settings, "v_head_dim"),
        intermediate=intermediate,
        vocab=size(settings, "vocab_size"),
        tied=bool(settings.get("tie_word_embeddings")),
        linear=attention + experts.feed_forward("mlp", hidden, intermediate, has_bias=has_bias),
        norms=("input_layernorm", "post_attention_layernorm"),
        latent_norms=tuple((f"self_attn.{name}_a_layernorm", width) for name, width in ranks.items()),
        sparse=tuple(range(first_dense if dense is None else dense, layers)),
        sparse_linear=attention + experts.feed_forward(SHARED, hidden, shared, has_bias=has_bias) + routed,
        sparse_intermediate=shared + used * width,
    )


def _attention(settings: Settings, hidden: int, heads: int) -> tuple[tuple[Linear, ...], dict[str, int]]:
    """The linear layers of attention, and the widths of what it compresses.

    A `q_lora_rank` of null means that queries are not compressed.
    """
    has_bias, latent = bool(settings.get("attention_bias")), size(settings, "kv_lora_rank")
    rotated, plain, value = (size(settings, each) for each in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    if rotated % 2:
        raise ConfigError(
            f"{WHERE} has qk_rope_head_dim {rotated}: positions are rotated in pairs, so it must be even",
            hint=experts.HINT,
        )
    keys = (
        Linear("self_attn.kv_a_proj_with_mqa", hidden, latent + rotated, "attention", has_bias),
        Linear("self_attn.kv_b_proj", latent, heads * (plain + value), "latent keys"),
        Linear(OUTPUT, heads * value, hidden, ATTENDED, has_bias),
    )
    queries = heads * (plain + rotated)
    if (rank := optional_size(settings, "q_lora_rank")) is None:
        return (Linear("self_attn.q_proj", hidden, queries, "attention"), *keys), {"kv": latent}
    compressed = (
        Linear("self_attn.q_a_proj", hidden, rank, "attention", has_bias),
        Linear("self_attn.q_b_proj", rank, queries, "latent queries"),
    )
    return (*compressed, *keys), {"q": rank, "kv": latent}


def _v2_dimensions(settings: Settings) -> Dimensions:
    experts.refuse_unlike(settings, "scoring_func", ("softmax",))
    experts.refuse_unlike(settings, "topk_method", ("greedy", "group_limited_greedy"))
    experts.refuse_unlike(settings, "norm_topk_prob", (False,))
    experts.refuse_unlike(settings, "moe_layer_freq", (1,))
    if settings.get("topk_method") == "group_limited_greedy":
        experts.refuse_uneven_groups(settings)
    return _dimensions(settings, first_dense=0)


def _v3_dimensions(settings: Settings) -> Dimensions:
    experts.refuse_unlike(settings, "scoring_func", ("sigmoid",))
    experts.refuse_unlike(settings, "topk_method", ("noaux_tc",))
    experts.refuse_unlike(settings, "moe_layer_freq", (1,))
    experts.refuse_uneven_groups(settings)
    found = _dimensions(settings, first_dense=3)
    experts.refuse_unlike(settings, "head_dim", (size(settings, "qk_rope_head_dim"),))
    return found


def _v3_weights(settings: Settings) -> dict[str, Shape]:
    buffers = {f"{experts.ROUTER}.{BIAS}": (size(settings, "n_routed_experts"),)}
    return experts.weights(_v3_dimensions(settings), _NAMES, buffers)


def _passed_over(settings: Settings) -> tuple[str, ...]:
    """The layers that predict further tokens, which come after the others: transformers has no module for them."""
    layers, more = size(settings, "num_hidden_layers"), optional_size(settings, "num_nextn_predict_layers") or 0
    return tuple(f"model.layers.{number}." for number in range(layers, layers + more))


_deepseek: Final[Callable[..., Family]] = partial(
    Family,
    embedding="model.embed_tokens",
    blocks="model.layers.*",
    head="lm_head",
    linear=_ATTENTION + FEED_FORWARD + _SHARED,
    experts=experts.EXPERTS,
    peft_renames=True,
    router=experts.ROUTER,
    residual=(OUTPUT, "mlp"),
    own_dropout=("model.layers.*.self_attn.attention_dropout",),
)
# Defaults are those of transformers' configuration_deepseek_{v2,v3}.py; released models give nearly all.
ENTRIES: Final = (
    _deepseek(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        dimensions=_v2_dimensions,
        weights=lambda settings: experts.weights(_v2_dimensions(settings), _NAMES),
    ),
    _deepseek(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        dimensions=_v3_dimensions,
        weights=_v3_weights,
        passed_over=_passed_over,
        without={"num_nextn_predict_layers": 0},
        moved=(BIAS,),
    ),
)
