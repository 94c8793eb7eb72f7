"""FLOPs and peaks, against numbers that others have published or that follow from the model itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deepseek_trainer.base_model.families import read_dimensions
from deepseek_trainer.budget.perf import (
    GPUS,
    Yardstick,
    flops_per_token,
    gpu_named,
    hardware_flops,
    model_flops,
    palm_flops,
)
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import LoraSpec, MethodSpec
from deepseek_trainer.model.method import trainable
from support.builders.model import a_batch, a_config, tiny_model

H200 = "NVIDIA H200"


def job(*, method=None, recompute="None", **changes):
    """Of rows of 16 tokens."""
    parts = {"data": {"train": {"claimName": "d"}, "sequenceLength": 16}, "optimization": {"recompute": recompute}}
    return a_config(**parts | {"method": method or {}} | changes)


def test_gpt2_takes_855_mflop_a_token():
    assert palm_flops(85_054_464 + 38_597_376, 12, 768, 1024) / 1e6 == pytest.approx(855, abs=1)


def test_flops_of_a_model_are_those_that_torch_counts():
    model, batch = tiny_model(tie_word_embeddings=False), a_batch(2, 16)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=batch.tokens_BT).logits
        logits.sum().backward()
    found = flops_per_token(read_dimensions(model.config.to_dict()), 16)
    # torch counts neither norms nor the embedding's lookup, and the attention's backward pass with a recomputation.
    assert counter.get_total_flops() / batch.tokens_BT.numel() == pytest.approx(found, rel=0.1)


def test_adapters_spare_the_gradients_of_frozen_weights():
    dimensions = read_dimensions(tiny_model().config.to_dict())
    lora = LoraSpec(rank=2)
    full, adapted = flops_per_token(dimensions, 16), flops_per_token(dimensions, 16, lora)
    assert full - adapted == 2 * dimensions.parameters - 6 * dimensions.adapters(lora)


@pytest.mark.parametrize(
    ("recompute", "frozen_layers", "expected"),
    [("None", None, 0), ("Selective", None, 0), ("Full", None, 1), ("Full", 1, 0.5)],
)
def test_the_hardware_does_the_forward_pass_of_trained_layers_twice(recompute, frozen_layers, expected):
    """In shares of the forward pass of all layers, as torch counts it."""
    model, batch = tiny_model(), a_batch(2, 16)
    with FlopCounterMode(display=False) as counter:
        model.get_decoder()(input_ids=batch.tokens_BT)
    forward = counter.get_total_flops() / batch.tokens_BT.numel()
    config = job(method={"frozenLayers": frozen_layers}, recompute=recompute)
    dimensions = read_dimensions(model.config.to_dict())
    again = hardware_flops(config, dimensions) - flops_per_token(dimensions, 16, frozen_layers=frozen_layers)
    assert again / forward == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_layers_need_no_backward_pass_as_torch_counts(tied):
    model, batch = tiny_model(tie_word_embeddings=tied), a_batch(2, 16)
    dimensions = read_dimensions(model.config.to_dict())
    counted = []
    for frozen in (None, MethodSpec(frozen_layers=1)):
        trained = trainable(model, frozen or MethodSpec(), 0, torch.device("cpu"), torch.float32)
        with FlopCounterMode(display=False) as counter:
            trained(input_ids=batch.tokens_BT).logits.sum().backward()
        counted.append(counter.get_total_flops() / batch.tokens_BT.numel())
    spared = flops_per_token(dimensions, 16) - flops_per_token(dimensions, 16, frozen_layers=1)
    assert counted[0] - counted[1] == pytest.approx(spared, rel=0.1)


def test_pairs_cost_the_forward_pass_of_their_reference_as_torch_counts():
    model, batch = tiny_model(), a_batch(2, 16)
    dimensions = read_dimensions(model.config.to_dict())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=batch.tokens_BT)
    pairs = job(data={"train": {"claimName": "c"}, "format": "Preference", "sequenceLength": 16})
    reference = model_flops(pairs, dimensions) - flops_per_token(dimensions, 16)
    assert counter.get_total_flops() / batch.tokens_BT.numel() == pytest.approx(reference, rel=0.1)


def test_mfu_and_hfu_are_shares_of_the_peak_of_all_devices():
    config, dimensions = job(numProcPerNode=2), read_dimensions(tiny_model().config.to_dict())
    yardstick = Yardstick.of(H200, config, dimensions)
    flops = flops_per_token(dimensions, 16)
    assert yardstick.mfu(989e12 / flops) == pytest.approx(0.5)
    assert yardstick.hfu(989e12 / flops / 16) == pytest.approx(0.5), "rows of 16 tokens"


@pytest.mark.parametrize("name", [None, "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_what_a_gpu_without_a_known_peak_reaches_is_not_computed(name):
    assert Yardstick.of(name, job(), read_dimensions(tiny_model().config.to_dict())) is None


@pytest.mark.parametrize("text", ["h200", "H200", "nvidia h200", "NVIDIA H200"])
def test_gpu_is_found_by_a_part_of_its_name(text):
    assert gpu_named(text) == H200


def test_l4_is_not_l40s():
    assert gpu_named("L4") == "NVIDIA L4"


@pytest.mark.parametrize(("text", "problem"), [("A100", "several GPUs"), ("TPU v5", "no GPU")])
def test_gpu_that_is_not_clear_is_refused_with_names(text, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        gpu_named(text)
    names = [name for name in GPUS if text in name] or list(GPUS)
    assert caught.value.hint == f"one of: {'; '.join(names)}"
