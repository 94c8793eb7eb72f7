import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from deepseek_trainer.model.attention import block_causal_mask
from deepseek_trainer.tasks.language.packing import (
    IGNORED,
    Document,
    best_fit,
    packed_row,
    row_dtype,
    split_rows,
    unpacked,
)

LENGTH = 16
PAD = 99
lengths = st.lists(st.integers(1, 50), min_size=1, max_size=30)


def a_document(length, start=0, prompt=0):
    """Tokens start, start + 1, ...; the first `prompt` of them are not learned."""
    return Document(np.arange(start, start + length, dtype=np.uint32), np.arange(length) >= prompt)


def some_documents(of_lengths):
    return [a_document(length, 100 * i) for i, length in enumerate(of_lengths)]


def laid_out(rows, length=LENGTH, vocab_size=10_000):
    dtype = row_dtype(length, vocab_size)
    return unpacked(np.concatenate([packed_row(parts, dtype, PAD) for parts in rows]))


def transitions(rows):
    """(token, next token) of every learned position."""
    learned = rows.targets_BT != IGNORED
    return sorted(zip(rows.tokens_BT[learned].tolist(), rows.targets_BT[learned].tolist(), strict=True))


@given(lengths)
def test_split_learns_every_transition_exactly_once(of_lengths):
    documents = some_documents(of_lengths)
    rows = laid_out(list(split_rows(documents, LENGTH)))
    assert transitions(rows) == [(100 * i + t, 100 * i + t + 1) for i, n in enumerate(of_lengths) for t in range(n - 1)]


@given(lengths)
def test_split_fills_every_row_but_for_one_token(of_lengths):
    rows = [sum(map(len, row)) for row in split_rows(some_documents(of_lengths), LENGTH)]
    assert all(LENGTH - 1 <= filled <= LENGTH for filled in rows[:-1])
    assert 1 <= rows[-1] <= LENGTH


@given(st.lists(st.integers(1, LENGTH), max_size=60))
def test_best_fit_packs_each_document_once_and_overfills_no_row(of_lengths):
    rows = best_fit(of_lengths, LENGTH)
    assert sorted(i for row in rows for i in row) == list(range(len(of_lengths)))
    assert all(sum(of_lengths[i] for i in row) <= LENGTH for row in rows)


@given(st.lists(st.integers(1, LENGTH), min_size=2, max_size=60))
def test_best_fit_leaves_no_two_rows_that_fit_into_one(of_lengths):
    filled = sorted(sum(of_lengths[i] for i in row) for row in best_fit(of_lengths, LENGTH))
    assert len(filled) < 2 or filled[0] + filled[1] > LENGTH


def test_best_fit_takes_the_fullest_row_that_has_room():
    assert best_fit([5, 10, 3, 16, 6, 2, 1], LENGTH) == [[0, 2, 5, 6], [1, 4], [3]]


def test_best_fit_wastes_little_on_mixed_lengths():
    of_lengths = np.random.default_rng(0).integers(20, 700, 5000).tolist()
    rows = best_fit(of_lengths, 1024)
    assert sum(of_lengths) / (1024 * len(rows)) > 0.99


def test_a_row_of_two_documents_reads_as_documented():
    rows = laid_out([[a_document(3, 10), a_document(4, 20, prompt=2)]], length=9)
    assert rows.tokens_BT.tolist() == [[10, 11, 12, 20, 21, 22, 23, PAD, PAD]]
    no = IGNORED
    assert rows.targets_BT.tolist() == [[11, 12, no, no, 22, 23, no, no, no]]
    assert rows.position_ids_BT.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1]]
    assert rows.document_ids_BT.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 2]]


@given(lengths, st.integers(16, 40), st.sampled_from([300, 1 << 16, 1 << 17]))
def test_targets_are_the_next_tokens_of_the_same_document(of_lengths, length, vocab_size):
    rows = laid_out(split_rows(some_documents(of_lengths), length), length, vocab_size)
    row, place = np.nonzero(rows.targets_BT != IGNORED)
    assert (rows.targets_BT[row, place] == rows.tokens_BT[row, place + 1]).all()
    assert (rows.document_ids_BT[row, place] == rows.document_ids_BT[row, place + 1]).all()
    assert (rows.position_ids_BT[row, place] + 1 == rows.position_ids_BT[row, place + 1]).all()


@pytest.mark.parametrize(("vocab_size", "token_bytes"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(vocab_size, token_bytes):
    assert row_dtype(20, vocab_size).itemsize == 20 * token_bytes + 3 + 3


def test_the_highest_token_survives_packing():
    rows = laid_out([[Document(np.array([0, 65535], np.uint32), np.ones(2, bool))]], vocab_size=1 << 16)
    assert rows.tokens_BT[0, 1] == rows.targets_BT[0, 0] == 65535


def test_num_targets_leaves_out_the_first_token():
    assert [a_document(5).num_targets, a_document(5, prompt=3).num_targets, a_document(1).num_targets] == [4, 2, 0]


def test_mask_lets_a_token_see_itself_and_what_precedes_it_in_its_document():
    mask = block_causal_mask(torch.tensor([[0, 0, 1, 1]]))
    assert mask.int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


def packed_loss(model, rows, mask):
    logits_BTV = model(
        input_ids=torch.from_numpy(rows.tokens_BT),
        position_ids=torch.from_numpy(rows.position_ids_BT),
        attention_mask=mask,
    ).logits
    return cross_entropy(logits_BTV.flatten(0, 1), torch.from_numpy(rows.targets_BT).flatten(), reduction="sum")


def test_packed_loss_equals_the_loss_of_each_document_by_itself(model):
    """Judged by transformers' own loss of one unpacked document at a time."""
    drawn = np.random.default_rng(1)
    documents = [
        Document(drawn.integers(0, 128, n).astype(np.uint32), np.arange(n) >= prompt)
        for n, prompt in [(5, 0), (9, 4), (2, 0), (16, 7), (11, 3)]
    ]
    rows = laid_out([[documents[i] for i in row] for row in best_fit([len(d) for d in documents], LENGTH)])
    assert len(rows.tokens_BT) < len(documents)
    with torch.inference_mode():
        mask = block_causal_mask(torch.from_numpy(rows.document_ids_BT))
        together = packed_loss(model, rows, mask)
        alone = sum(lone_loss(model, document) for document in documents)
        blind = packed_loss(model, rows, torch.ones_like(mask).tril())
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert abs(blind - alone) > 1e-3, "without isolation the losses differ: this test can fail"


def lone_loss(model, document):
    tokens_BT = torch.from_numpy(document.tokens.astype(np.int64))[None]
    labels_BT = tokens_BT.masked_fill(torch.from_numpy(~document.learned)[None], IGNORED)
    return model(input_ids=tokens_BT, labels=labels_BT).loss * document.num_targets
