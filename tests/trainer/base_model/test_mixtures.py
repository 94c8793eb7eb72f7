"""That the entries of families with experts say what is true of the models of transformers."""

import json
from typing import Any

import pytest
from transformers.core_model_loading import revert_weight_conversion

from deepseek_trainer.base_model.families import FAMILIES, read_dimensions
from deepseek_trainer.base_model.headers import refuse_other_weights
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.model.blocks import expert_stacks, routers
from deepseek_trainer.model.loading import count_parameters
from support.builders.experts import KINDS, a_mixture
from support.builders.model import a_config

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "queries without a latent": ("deepseek_v2", {"q_lora_rank": None}),
    "no dense layer": ("deepseek_v3", {"first_k_dense_replace": 0}),
    "biased": ("deepseek_v2", {"attention_bias": True, "mlp_bias": True}),
    "groups of experts": ("deepseek_v3", {"n_group": 2, "topk_group": 1}),
    "a layer without experts": ("qwen2_moe", {"mlp_only_layers": [0]}),
    "every second layer": ("qwen3_moe", {"decoder_sparse_step": 2, "num_hidden_layers": 4}),
    "tied": ("qwen2_moe", {"tie_word_embeddings": True, "qkv_bias": False}),
}


@pytest.fixture(params=SHAPES, scope="module")
def model(request):
    kind, changes = SHAPES[request.param]
    return a_mixture(kind, **changes)


def test_weights_that_follow_from_config_json_are_those_of_the_familys_own_files(model):
    settings = json.loads(model.config.to_json_string())
    found = {name: tuple(tensor.shape) for name, tensor in in_files(model).items()}
    wanted = FAMILIES[settings["model_type"]].weights(settings)
    assert wanted == found | ({"lm_head.weight": wanted["lm_head.weight"]} if settings["tie_word_embeddings"] else {})


def test_all_parameters_count_and_of_experts_those_of_a_token_are_active(model):
    found = read_dimensions(model.config.to_dict())
    assert found.parameters == count_parameters(model).total
    idle = sum(stack.numel() for stack in expert_stacks(model)) // 2
    assert found.active == found.parameters - idle


def test_routers_and_stacks_of_experts_are_found_in_sparse_blocks_alone(model):
    sparse = read_dimensions(model.config.to_dict()).sparse
    assert len(routers(model)) == len(sparse)
    assert len(expert_stacks(model)) == 2 * len(sparse)
    assert 0 < len(sparse) <= model.config.num_hidden_layers


def in_files(model):
    """What transformers writes, without the buffers that follow from config.json."""
    return revert_weight_conversion(model, dict(model.state_dict()))


def settings_of(kind: str, **changes: Any) -> dict[str, Any]:
    return json.loads(a_mixture(kind).config.to_json_string()) | changes


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "deepseek_v3",
            {"topk_method": "greedy"},
            "topk_method 'greedy': transformers computes such a model with noaux",
        ),
        (
            "deepseek_v3",
            {"scoring_func": "softmax"},
            "scoring_func 'softmax': transformers computes such a model with si",
        ),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob True: transformers computes such a model with False"),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq 2: transformers computes such a model with 1"),
        ("deepseek_v3", {"n_group": 4}, "has 4 experts in n_group 4, of which topk_group 1 give each token 2"),
        ("deepseek_v3", {"n_group": 3}, "has 4 experts in n_group 3"),
        (
            "deepseek_v3",
            {"num_experts_per_tok": 5},
            "has 4 experts in n_group 1, of which topk_group 1 give each token 5",
        ),
        ("deepseek_v3", {"qk_rope_head_dim": 3, "head_dim": 3}, "qk_rope_head_dim 3: positions are rotated in pairs"),
        ("deepseek_v3", {"head_dim": 8}, "head_dim 8: transformers computes such a model with 4"),
        ("deepseek_v3", {"kv_lora_rank": None}, "lacks kv_lora_rank"),
        ("qwen3_moe", {"num_experts_per_tok": 5}, "has 4 experts, of which each token uses 5"),
        ("mixtral", {"num_local_experts": None}, "lacks num_experts"),
        ("qwen2_moe", {"mlp_only_layers": ["x"]}, "mlp_only_layers ['x']: it must be a list of the numbers of layers"),
    ],
)
def test_a_config_json_that_no_run_could_follow_is_refused(kind, changes, message):
    with pytest.raises(ConfigError) as caught:
        refuse_misfit(a_config(method={"type": "Full"}), settings_of(kind, **changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {}, "optimization": {"optimizer": "Muon"}}, "optimizer Muon takes matrices"),
        (
            {"method": {"type": "LoRA", "lora": {"targetModules": ["o_proj", "experts.down_proj"]}}},
            "method.lora.dropout=0.1 with targetModules experts.down_proj",
        ),
        ({"method": {"type": "LoRA", "lora": {"targetModules": ["c_attn"]}}}, "the model has no linear layer c_attn"),
    ],
)
def test_what_a_model_with_experts_cannot_do_is_refused_before_it_is_loaded(kind, changes, message):
    with pytest.raises(ConfigError) as caught:
        refuse_misfit(a_config(**changes), settings_of(kind))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "targets", "lost"),
    [
        ("deepseek_v3", "all-linear", "down_proj, gate_proj, up_proj"),
        ("deepseek_v2", "down_proj", "down_proj"),
        ("qwen2_moe", "all-linear", None),
        ("qwen3_moe", "all-linear", None),
        ("qwen3_moe with a dense layer", "all-linear", "down_proj, gate_proj, up_proj"),
        ("mixtral", "all-linear", None),
        ("deepseek_v3", "kv_b_proj", None),
    ],
)
def test_an_adapter_that_plain_peft_could_not_load_is_refused(kind, targets, lost):
    job = a_config(method={"type": "LoRA", "lora": {"targetModules": [targets]}}, export={"formats": ["Adapter"]})
    kind, _, has_dense = kind.partition(" ")
    settings = settings_of(kind) | ({"mlp_only_layers": [0]} if has_dense else {})
    if lost is None:
        refuse_misfit(job, settings)
        return
    with pytest.raises(ConfigError, match=rf"export\.formats Adapter with targetModules {lost}: "):
        refuse_misfit(job, settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [{}, {"type": "LoRA"}, {"type": "LoRA", "lora": {"targetModules": ["all-linear"]}}])
def test_every_such_family_is_trained_in_full_and_by_adapters_with_their_defaults(kind, method):
    refuse_misfit(a_config(method=method), settings_of(kind))


def test_layers_that_predict_further_tokens_are_passed_over(tmp_path):
    settings = settings_of("deepseek_v3", num_nextn_predict_layers=1)
    found = {name: ("model.safetensors", tuple(t.shape)) for name, t in in_files(a_mixture("deepseek_v3")).items()}
    found["model.layers.2.eh_proj.weight"] = ("model.safetensors", (32, 64))
    refuse_other_weights(tmp_path, found, settings)
    with pytest.raises(ConfigError, match=r"model\.layers\.2\.eh_proj\.weight, of which config\.json knows nothing"):
        refuse_other_weights(tmp_path, found, settings | {"num_nextn_predict_layers": 0})
