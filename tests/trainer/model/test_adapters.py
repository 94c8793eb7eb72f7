import pytest
import torch

from deepseek_trainer.base_model.families import FAMILIES, last_names
from deepseek_trainer.contract.errors import ConfigError, NotFiniteError
from deepseek_trainer.contract.method import LoraSpec
from deepseek_trainer.model.adapters import adapter_state, merged, with_adapters
from deepseek_trainer.model.loading import count_parameters, trainable_parameters
from deepseek_trainer.model.nf4 import quantise
from deepseek_trainer.tasks.language.loss import causal_loss
from support.builders.model import a_batch, tiny_model

SPEC = LoraSpec(rank=4, alpha=8, dropout=0.0)


def a_base(dtype=None):
    """A tiny model; in NF4, where `dtype` says what that computes in."""
    model = tiny_model()
    if dtype is not None:
        quantise(model, torch.device("cpu"), dtype)
    return model


def trained(base=None):
    """A model with adapters that make a difference."""
    model = with_adapters(base or tiny_model(), SPEC, seed=0)
    for parameter in trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_fresh_adapters_change_no_answer():
    batch = a_batch()
    plain = causal_loss(tiny_model(), batch)[0]
    assert torch.equal(plain, causal_loss(with_adapters(tiny_model(), SPEC, seed=0).eval(), batch)[0])


def test_only_adapters_are_trainable():
    model = with_adapters(tiny_model(), SPEC, seed=0)
    # rank x (inputs + outputs) of q_proj (32 -> 32) and v_proj (32 -> 16), in two layers
    assert (
        count_parameters(model).trainable == 2 * 4 * (64 + 48) == sum(t.numel() for t in adapter_state(model).values())
    )


def test_adapters_learn_through_causal_loss():
    model = trained()
    causal_loss(model, a_batch())[0].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trainable_parameters(model))


def test_adapters_start_alike_with_the_same_seed():
    one, same, other = (adapter_state(with_adapters(tiny_model(), SPEC, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(None, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)],
    ids=["fp32 base", "NF4 base", "NF4 base in bf16"],
)
def test_merged_model_answers_as_base_and_adapters_did(dtype, tolerance):
    model, tokens = trained(a_base(dtype)), a_batch().tokens_BT
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        untrained = tiny_model()(input_ids=tokens).logits
        complete = merged(model)
        after = complete(input_ids=tokens).logits
    torch.testing.assert_close(after, before, rtol=0, atol=tolerance * float(before.abs().max()))
    assert {name: weight.dtype for name, weight in complete.state_dict().items()} == dict.fromkeys(
        tiny_model().state_dict(), torch.float32
    )
    assert (after - untrained).abs().max() > 0.1, "the adapters made no difference: nothing was tested"


def test_merging_refuses_weights_that_are_not_finite():
    model = trained()
    trainable_parameters(model)[0].data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="logits"):
        merged(model)


def test_all_linear_puts_an_adapter_on_every_linear_layer_but_the_head():
    adapted = adapter_state(with_adapters(tiny_model(), LoraSpec(target_modules=("all-linear",)), seed=0))
    assert {name.split(".")[-3] for name in adapted} == set(last_names(FAMILIES["llama"].linear))
    assert "lm_head" not in "".join(adapted)


def test_unknown_target_module_is_refused_with_those_that_exist():
    with pytest.raises(
        ConfigError, match=r"no linear layer c_attn \(hint: it has down_proj, gate_proj, k_proj, o_proj, q_"
    ):
        with_adapters(tiny_model(), LoraSpec(target_modules=("q_proj", "c_attn")), seed=0)
