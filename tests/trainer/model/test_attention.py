"""Packed rows of every family: each document is learned as plain transformers would learn it alone."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from deepseek_trainer.model.attention import block_causal_mask, masks_of
from deepseek_trainer.model.dropout import drop_out
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import causal_loss, row_losses
from support.builders.families import SPARSE, VARIANTS, WINDOW, a_model
from support.builders.model import VOCAB

LENGTHS = (17, 1, 12)  # of the documents of a row: two are longer than any window


def packed(seed=0):
    """A row of documents, of which each token but the first is learned."""
    torch.manual_seed(seed)
    documents = [torch.randint(VOCAB, (length,)) for length in LENGTHS]
    targets = torch.cat([torch.cat([document[1:], torch.tensor([-100])]) for document in documents])
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    ids = torch.cat([torch.full((length,), number) for number, length in enumerate(LENGTHS)])
    return documents, TokenBatch(torch.cat(documents)[None], targets[None], positions[None], ids[None])


def alone(model, documents):
    """The summed loss of each document by itself, as the model's own class computes its logits."""
    return sum(
        cross_entropy(model(input_ids=document[None]).logits[0, :-1].double(), document[1:], reduction="sum")
        for document in documents
        if len(document) > 1
    )


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS | SPARSE)
def test_loss_and_gradients_of_packed_rows_are_those_of_the_documents_alone(variant):
    documents, batch = packed()
    model = a_model(variant).double().train()
    if variant in SPARSE:
        model.set_experts_implementation("eager")  # grouped products have no float64
    drop_out(model, 0.0)
    plain = alone(model, documents)
    ours, count = causal_loss(model, batch, logits_bytes=4 * VOCAB * 7)  # several parts
    assert count == sum(LENGTHS) - len(LENGTHS)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-6, atol=0)
    wanted, found = gradients(model, plain), gradients(model, ours)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    torch.testing.assert_close(row_losses(model, batch)[0], plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "variant", [name for name in VARIANTS | SPARSE if "window" in name or name in ("gemma2", "phi3")]
)
def test_a_window_makes_a_difference_to_documents_that_are_longer(variant):
    _, batch = packed()
    narrow, wide = a_model(variant), a_model(variant, sliding_window=len(batch.tokens_BT[0]))
    assert (row_losses(narrow, batch) - row_losses(wide, batch)).abs() > 1e-3


def test_a_window_sees_so_many_tokens_of_its_own_document():
    ids = torch.tensor([[0] * 8 + [1] * 3])
    mask = masks_of(ids, {"": WINDOW})[""][0, 0]
    assert [row.nonzero().flatten().tolist() for row in (mask[7], mask[8], mask[10])] == [
        [3, 4, 5, 6, 7],
        [8],
        [8, 9, 10],
    ]


@pytest.mark.parametrize("window", [None, 4, 9])
def test_a_window_as_long_as_a_row_takes_no_mask_of_its_own(window):
    ids = torch.zeros(1, 4, dtype=torch.int64)
    made = masks_of(ids, {"full_attention": None, "sliding_attention": window})
    assert made["sliding_attention"] is made["full_attention"]
    assert torch.equal(made["full_attention"], block_causal_mask(ids))
