import copy

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn

from deepseek_trainer.model.loading import count_parameters
from deepseek_trainer.model.nf4 import compute_dtype, dequantise, quantise
from deepseek_trainer.tasks.language.loss import causal_loss
from support.builders.model import a_batch, tiny_model

CPU = torch.device("cpu")
WIDTH = {"hidden_size": 64, "head_dim": 16}  # whole blocks of NF4 in each row


def a_model(kind="llama", **changes):
    return tiny_model(kind, **WIDTH | changes)


def in_nf4(dtype=torch.float32, kind="llama", **changes):
    model = a_model(kind, **changes)
    quantise(model, CPU, dtype)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=a_batch().tokens_BT).logits


def linear_bytes(model):
    return [layer.weight.numpy().tobytes() for layer in model.modules() if isinstance(layer, Linear4bit)]


def test_weights_in_nf4_are_off_by_a_tenth_of_their_size():
    plain, quantised = a_model(), in_nf4()
    dequantise(quantised)
    for name, weight in plain.state_dict().items():
        error = (quantised.state_dict()[name] - weight).norm() / weight.norm()
        is_linear = ".layers." in name and "norm" not in name
        assert (0.05 < error < 0.12) if is_linear else error == 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_nf4_answers_as_its_dequantised_weights_do(dtype):
    """Biases among them, which qwen2 has."""
    model = in_nf4(dtype, "qwen2")
    for layer in model.model.layers:
        nn.init.normal_(layer.self_attn.q_proj.bias)
    before = logits(model)
    dequantise(model)
    assert compute_dtype(model) is None
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype] * before.abs().max()
    torch.testing.assert_close(logits(model), before, rtol=0, atol=float(tolerance))


def test_the_decoder_but_neither_head_nor_embedding_nor_norms_is_quantised():
    model = in_nf4(tie_word_embeddings=False)
    quantised = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}
    assert quantised == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {p.dtype for name, p in model.named_parameters() if "proj" not in name} == {torch.float32}


def test_quantising_gives_the_same_bytes_again():
    assert linear_bytes(in_nf4()) == linear_bytes(in_nf4())


def test_weights_in_nf4_take_an_eighth_of_the_bytes_and_count_in_full():
    plain, quantised = a_model(), in_nf4()
    weights = [layer.weight for layer in plain.model.layers.modules() if isinstance(layer, nn.Linear)]
    assert sum(map(len, linear_bytes(quantised))) * 8 == sum(weight.nbytes for weight in weights)
    assert count_parameters(quantised).total == count_parameters(plain).total


def test_an_evaluation_leaves_the_weights_as_they_are_also_where_bitsandbytes_would_pack_them(monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = in_nf4()
    before = copy.deepcopy(linear_bytes(model))
    logits(model.eval())
    assert linear_bytes(model) == before


def test_gradients_flow_through_weights_in_nf4_and_are_those_of_the_dequantised_ones():
    model = in_nf4()
    embedding = model.get_input_embeddings().weight
    causal_loss(model, a_batch())[0].backward()
    ours, embedding.grad = embedding.grad, None
    dequantise(model)
    causal_loss(model, a_batch())[0].backward()
    torch.testing.assert_close(ours, embedding.grad, rtol=1e-4, atol=1e-4)
