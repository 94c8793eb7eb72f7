"""What of ZeRO needs no ranks; the rest is in tests/e2e/test_zero_learner.py."""

import torch

from deepseek_trainer.training.zero_learner import with_weights
from support.builders.loop import an_adapted_model
from support.builders.model import a_batch, tiny_model


def test_a_copy_has_the_weights_that_it_is_given_and_no_others():
    model = tiny_model()
    bare = with_weights(model, (torch.empty_like(weight, device="meta") for weight in model.parameters()))
    assert all(weight.is_meta for weight in bare.parameters())
    again = with_weights(bare, (weight.data for weight in model.parameters()))
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight, "tied as they were"
    for weight, own in zip(again.parameters(), model.parameters(), strict=True):
        assert weight.data_ptr() == own.data_ptr()
    tokens = a_batch().tokens_BT
    assert torch.equal(again(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_a_copy_trains_what_the_model_trains():
    model = an_adapted_model()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    copied = with_weights(model, (weight.data for weight in model.parameters()))
    assert {name for name, weight in copied.named_parameters() if weight.requires_grad} == trained
