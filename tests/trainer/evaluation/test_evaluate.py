import math

import pytest
import torch

from deepseek_trainer.data.dataset import Batch
from deepseek_trainer.evaluation.evaluate import EvalResult, Reference, answer, evaluate_loss, is_right, score_answers
from deepseek_trainer.language.tokenizer import prompt_ids
from deepseek_trainer.model.causal_lm import causal_loss
from support.builders.model import VOCAB, a_batch, a_tokenizer, tiny_model


class FiveRows:
    """Rows with different numbers of learned tokens."""

    def __len__(self):
        return 5

    def batch(self, indices):
        whole = a_batch(num_rows=5)
        rows = list(indices)
        given = (whole.tokens_BT, whole.targets_BT, whole.position_ids_BT, whole.document_ids_BT)
        return Batch(*(each_BT[rows] for each_BT in given))


def evaluated(world_size, *, max_rows=100, batch_size=2, model=None, before_batch=lambda: None, token_bytes=None):
    """What all ranks agree on, computed one rank after the other."""
    parts = []
    model = model or tiny_model()

    def collect(values):
        parts.append(values)
        return [sum(column) for column in zip(*parts, strict=True)]

    results = [
        evaluate_loss(
            model,
            FiveRows(),
            max_rows=max_rows,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            reduce=collect,
            before_batch=before_batch,
            token_bytes=token_bytes,
        )
        for rank in range(world_size)
    ]
    return results[-1]  # the last rank has seen the sum over all


def test_evaluation_is_the_mean_over_tokens_not_over_rows():
    loss_sum, num_targets = causal_loss(tiny_model(), a_batch(num_rows=5))
    result = evaluated(world_size=1)
    assert result.loss == pytest.approx(float(loss_sum.detach()) / num_targets, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_evaluation_is_the_same_for_any_number_of_ranks(world_size):
    assert evaluated(world_size).loss == pytest.approx(evaluated(world_size=1).loss, rel=1e-6)


def test_evaluation_reads_no_more_than_max_rows():
    loss_sum, num_targets = causal_loss(tiny_model(), FiveRows().batch([0, 1]))
    assert evaluated(world_size=2, max_rows=2).loss == pytest.approx(float(loss_sum.detach()) / num_targets, rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_bits_per_byte_divide_the_whole_loss_by_the_bytes_of_the_learned_tokens(world_size):
    batch, token_bytes = FiveRows().batch([0, 1, 2]), torch.arange(VOCAB) % 5
    size = sum(int(token_bytes[token]) for token in batch.targets_BT.flatten().tolist() if token != -100)
    bits = float(causal_loss(tiny_model(), batch)[0].detach()) / math.log(2)
    result = evaluated(world_size, max_rows=3, token_bytes=token_bytes)
    assert result.bits_per_byte == pytest.approx(bits / size, rel=1e-5)


def test_without_bytes_there_are_no_bits_per_byte():
    assert evaluated(world_size=2).bits_per_byte is None
    assert evaluated(world_size=2, token_bytes=torch.zeros(VOCAB, dtype=torch.int64)).bits_per_byte is None


@pytest.mark.parametrize(
    ("world_size", "batch_size", "rounds"), [(1, 2, 3), (2, 1, 3), (2, 2, 2), (3, 1, 2), (7, 2, 1)]
)
def test_every_rank_asks_equally_often_whether_to_go_on(world_size, batch_size, rounds):
    asked = []
    evaluated(world_size, batch_size=batch_size, before_batch=lambda: asked.append(1))
    assert len(asked) == rounds * world_size


def test_an_evaluation_that_is_given_up_leaves_the_model_in_training_mode():
    model = tiny_model().train()
    with pytest.raises(ZeroDivisionError):
        evaluated(world_size=1, model=model, before_batch=lambda: 1 / 0)
    assert model.training


@pytest.mark.parametrize(("loss", "perplexity"), [(1.0, math.e), (700.0, None), (math.inf, None), (math.nan, None)])
def test_perplexity_is_a_number_that_json_can_hold_or_none(loss, perplexity):
    assert EvalResult(loss).perplexity == perplexity


def test_evaluation_leaves_the_model_in_training_mode():
    model = tiny_model().train()
    evaluate_loss(model, FiveRows(), max_rows=1, batch_size=1, rank=0, world_size=1, reduce=list)
    assert model.training


def test_answers_are_greedy_in_order_and_independent_of_their_batch():
    model, tokenizer = tiny_model(), a_tokenizer()
    prompts = ["pump?", "what runs at 12 bar and at 3.5 bar?", "valve"]
    together = answer(model, tokenizer, prompts, max_new_tokens=8)
    assert together == answer(model, tokenizer, prompts, max_new_tokens=8)
    assert together == [greedy(model, tokenizer, prompt, 8) for prompt in prompts]
    assert together == [answer(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]


def greedy(model, tokenizer, prompt, length):
    return tokenizer.decode(greedy_tokens(model, tokenizer, prompt, length), skip_special_tokens=True).strip()


def greedy_tokens(model, tokenizer, prompt, length):
    """Without a cache, a batch, or transformers' generate."""
    tokens = prompt_ids(tokenizer, prompt)
    start = len(tokens)
    while len(tokens) < start + length and tokenizer.eos_token_id not in tokens[start:]:
        with torch.no_grad():
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[start:]


def test_answer_ends_at_the_end_of_text():
    model, tokenizer = tiny_model(), a_tokenizer()
    whole = greedy_tokens(model, tokenizer, "pump?", 12)
    stop = next(i for i in range(2, 12) if whole[i] not in whole[:i] and whole[i] not in tokenizer.all_special_ids)
    tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(whole[stop])})
    expected = tokenizer.decode(whole[:stop], skip_special_tokens=True).strip()
    assert answer(model, tokenizer, ["pump?"], max_new_tokens=12) == [expected]


def test_no_prompts_have_no_answers():
    assert answer(tiny_model(), a_tokenizer(), [], max_new_tokens=4) == []


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("It runs at 3.5 bar.", Reference("3.5 bar", ("3.5 bar",)), True),
        ("It runs at 13.5 bar.", Reference("3.5 bar", ("3.5 bar",)), False),
        ("It runs at 3 or 5 bar.", Reference("3.5 bar", ("3.5 bar",)), False),
        ("PUMP\n  P-101!", Reference("", ("pump", "P-101")), True),
        ("the pump", Reference("", ("pump", "P-101")), False),
        ("pumpkin", Reference("", ("pump",)), False),
        ("The pump, of course.", Reference("the pump of course"), True),
        ("The pump, of course, or not.", Reference("the pump of course"), False),
        ("", Reference("the pump"), False),
    ],
)
def test_answer_is_right_by_phrases_or_equality(text, reference, right):
    assert is_right(text, reference) is right


def test_score_counts_right_answers():
    references = [Reference("a"), Reference("b", ("b",)), Reference("c")]
    assert str(score_answers(["A.", "the b", "d"], references)) == "2 of 3"
