"""FLOPs and peaks, against numbers that others have published or that follow from the model itself."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import LoraSpec
from deepseek_trainer.dimensions import Dimensions
from deepseek_trainer.perf import GPUS, flops_per_token, gpu_named, mfu, palm_flops, recomputed_flops
from model_builders import a_batch, tiny_model

H200 = "NVIDIA H200"


def test_gpt2_takes_855_mflop_a_token():
    assert palm_flops(85_054_464 + 38_597_376, 12, 768, 1024) / 1e6 == pytest.approx(855, abs=1)


def test_making_activations_again_is_one_more_forward_pass():
    assert 3 * recomputed_flops(1000, 2, 8, 16) == 4 * palm_flops(1000, 2, 8, 16)


def test_flops_of_a_model_are_those_that_torch_counts():
    model, batch = tiny_model(tie_word_embeddings=False), a_batch(2, 16)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=batch.tokens_BT).logits
        logits.sum().backward()
    found = flops_per_token(Dimensions.of_settings(model.config.to_dict()), 16)
    # torch counts neither norms nor the embedding's lookup, and the attention's backward pass with a recomputation.
    assert counter.get_total_flops() / batch.tokens_BT.numel() == pytest.approx(found, rel=0.1)


def test_adapters_spare_the_gradients_of_frozen_weights():
    dimensions = Dimensions.of_settings(tiny_model().config.to_dict())
    lora = LoraSpec(rank=2)
    full, adapted = flops_per_token(dimensions, 16), flops_per_token(dimensions, 16, lora)
    assert full - adapted == 2 * dimensions.parameters - 6 * dimensions.adapters(lora)


def test_mfu_is_a_share_of_the_peak_of_all_devices():
    assert mfu(989e12 / 4, 2.0, 2, H200) == pytest.approx(0.25)


def test_unknown_gpu_has_no_mfu():
    assert mfu(1000.0, 1e9, 1, "NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None


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
