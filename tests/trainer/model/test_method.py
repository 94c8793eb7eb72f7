from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import LoraSpec, MethodSpec, MethodType, PreferenceSpec
from deepseek_trainer.contract.optimization import OptimizationSpec, Strategy
from deepseek_trainer.model.loading import count_parameters
from deepseek_trainer.model.method import trainable
from deepseek_trainer.model.nf4 import compute_dtype
from deepseek_trainer.result import card
from deepseek_trainer.tasks.task import Usage
from deepseek_trainer.training.state import load_weights
from support.builders.loop import ALONE, a_learner
from support.builders.model import a_config, tiny_model


@pytest.fixture(scope="module")
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


AUTO = MethodSpec(type=MethodType.AUTO)


def trained_by(method, model=None, dtype=torch.float32):
    return trainable(model or tiny_model(), method, 0, torch.device("cpu"), dtype)


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@given(records=st.integers(0, 10**9), has_base=st.booleans(), rank=st.none() | st.integers(1, 1024))
def test_auto_is_lora_for_few_records_full_for_many_and_full_from_scratch(records, has_base, rank):
    given_ = None if rank is None else LoraSpec(rank=rank)
    method = MethodSpec(type=MethodType.AUTO, lora=given_).settled(records, has_base=has_base)
    if records >= 100_000 or not has_base:
        assert method == MethodSpec()
    else:
        assert method.type is MethodType.LORA
        assert method.adapters == given_ or rank is None


@pytest.mark.parametrize(("records", "has_base"), [(1, True), (10**6, True), (1, False)])
def test_auto_keeps_how_preferences_are_learned(records, has_base):
    preference = PreferenceSpec(beta=0.3)
    settled = AUTO.model_copy(update={"preference": preference}).settled(records, has_base=has_base)
    assert settled.preference == preference


def test_auto_raises_the_rank_and_adapts_every_linear_layer_from_10_000_records_on():
    few, more = (AUTO.settled(records, has_base=True).adapters for records in (9_999, 10_000))
    assert (few.rank, few.target_modules) == (16, ("q_proj", "v_proj"))
    assert (more.rank, more.alpha, more.target_modules) == (64, 128, ("all-linear",))
    assert more.alpha / more.rank == few.alpha / few.rank


@pytest.mark.parametrize(
    ("type_", "records", "ranks", "optimization", "strategy"),
    [
        ("Auto", 100_000, 2, {}, "FSDP"),
        ("Auto", 100_000, 1, {}, "DDP"),
        ("Auto", 99_999, 2, {}, "DDP"),
        ("Full", 100_000, 2, {}, "DDP"),
        ("Auto", 100_000, 2, {"optimizer": "Muon"}, "DDP"),
        ("Auto", 100_000, 2, {"strategy": "ZeRO2"}, "ZeRO2"),
    ],
    ids=["many records", "one rank", "fewer records", "not Auto", "Muon", "shards already"],
)
def test_auto_that_comes_to_full_shards_what_can_be_sharded(type_, records, ranks, optimization, strategy):
    job = a_config(method={"type": type_}).model_copy(update={"num_nodes": ranks})
    job = job.model_copy(update={"optimization": OptimizationSpec.model_validate(optimization)})
    settled = job.settled(records)
    expected = job.with_rate(records).optimization.model_copy(update={"strategy": Strategy(strategy)})
    assert settled.optimization == expected
    assert settled.method == job.method.settled(records, has_base=True)


@pytest.mark.parametrize("type_", sorted(set(MethodType) - {MethodType.AUTO}))
def test_a_method_that_is_named_does_not_depend_on_the_records(type_):
    method = MethodSpec(type=type_)
    assert method.settled(1, has_base=True) is method.settled(10**6, has_base=True) is method


def test_the_method_that_auto_chose_is_shown_with_the_number_of_records():
    fitted, usage = a_config(method={"type": "Auto"}).settled(1234), Usage("text-generation", "AutoModelForCausalLM")
    records = {"train": {"records": 1234}}
    story = card.Story(fitted, MethodType.AUTO, usage, None, count_parameters(tiny_model()), "", records, {}, {}, {})
    method = "LoRA, rank 16, alpha 32, dropout 0.1, on q_proj, v_proj"
    assert card.summary(story)["Method"] == f"{method} (Auto, for 1,234 training records; strategy DDP)"
    assert "\n- lora\n" in card.render(story)
    assert card.summary(replace(story, requested=MethodType.LORA))["Method"] == method


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qlora_puts_the_base_into_nf4_and_trains_adapters_in_fp32(dtype):
    model = trained_by(MethodSpec(type=MethodType.QLORA), dtype=dtype)
    assert compute_dtype(model) is dtype
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    lora = trained_by(MethodSpec(type=MethodType.LORA))
    assert (trained_names(model), count_parameters(model)) == (trained_names(lora), count_parameters(lora))
    assert compute_dtype(lora) is None


def test_frozen_layers_leave_the_upper_layers_and_the_head_to_be_trained():
    model = trained_by(MethodSpec(frozen_layers=1), tiny_model(tie_word_embeddings=False))
    names = trained_names(model)
    assert {"lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"} < names
    assert not any(name.startswith(("model.embed_tokens", "model.layers.0")) for name in names)


def test_a_head_that_is_tied_to_the_frozen_embedding_is_frozen_with_it():
    model = trained_by(MethodSpec(frozen_layers=1))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.requires_grad
    assert {name.removeprefix("model.").split(".")[0] for name in trained_names(model)} == {"layers", "norm"}


def test_a_checkpoint_of_a_partly_frozen_model_holds_what_is_trained_and_fits_that_alone(group_of_one):
    optimization = a_config().optimization
    model = trained_by(MethodSpec(frozen_layers=1))
    state = a_learner(model, optimization, ALONE).state()
    assert state["model"].keys() == trained_names(model)
    load_weights(a_learner(trained_by(MethodSpec(frozen_layers=1)), optimization, ALONE).state(), state)
    with pytest.raises(ConfigError, match="the checkpoint is of another model"):
        load_weights(a_learner(trained_by(MethodSpec()), optimization, ALONE).state(), state)


def test_freezing_every_layer_is_refused_with_how_many_there_are():
    with pytest.raises(ConfigError, match=r"frozenLayers=2: the model has 2 decoder layers.*\(hint: at most 1"):
        trained_by(MethodSpec(frozen_layers=2))
