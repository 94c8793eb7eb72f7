import pytest
import torch

from deepseek_trainer.tasks.language.answers import Reference, answer, is_right, score_answers
from deepseek_trainer.tasks.language.tokenizer import prompt_ids
from support.builders.model import a_tokenizer, tiny_model


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
