import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.evaluation.text_scores import Tokens, bleu, is_chinese, rouge, text_scores

CHINESE = [
    "\u6cf5\u7684\u538b\u529b\u662f 3.5 bar\u3002",
    "\u5173\u95ed\u9600\u95e8\uff0c\u7136\u540e\u91cd\u65b0\u542f\u52a8\u3002",
]
ENGLISH = ["the pump runs at 3.5 bar", "close the valve, then start again"]
NUMBERS = ("bleu", "rouge1", "rouge2", "rougeL")


def numbers(answers, references):
    scores = text_scores(answers, references)
    return [scores[name] for name in NUMBERS]


@pytest.mark.parametrize("texts", [CHINESE, ENGLISH, ["\u662f\u7684", "\u4e0d\u662f"], ["yes sir"]])
def test_the_same_text_scores_1_in_any_language(texts):
    assert numbers(texts, texts) == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("references", [CHINESE, ENGLISH])
@pytest.mark.parametrize("answers", [["", ""], ["!", "?"], ["qqq", "www"]])
def test_nothing_in_common_scores_0(answers, references):
    assert numbers(answers, references) == [0.0] * 4


def test_scores_of_a_few_words_are_those_computed_by_hand():
    """1-grams 3 of 4, 2-grams 2 of 3, 3-grams 1 of 2, 4-grams none of 1, which smoothing makes 1/2; no brevity."""
    scores = text_scores(["the cat sat down"], ["the cat sat there"])
    assert scores["bleu"] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    assert [scores[name] for name in NUMBERS[1:]] == pytest.approx([3 / 4, 2 / 3, 3 / 4])


def test_scores_of_a_few_chinese_characters_are_those_computed_by_hand():
    """Four of five characters: 1-grams 4 of 5, 2-grams 3 of 4, 3-grams 2 of 3, 4-grams 1 of 2."""
    scores = text_scores(["\u6cf5\u7684\u538b\u529b\u9ad8"], ["\u6cf5\u7684\u538b\u529b\u4f4e"])
    assert scores["bleu"] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert [scores[name] for name in NUMBERS[1:]] == pytest.approx([4 / 5, 3 / 4, 4 / 5])


def test_rouge_2_is_measured_on_references_of_two_tokens_or_more():
    assert rouge(["yes"], ["yes"]) == {"rouge1": 1.0, "rouge2": None, "rougeL": 1.0}
    assert rouge(["yes", "no idea"], ["yes", "no idea"])["rouge2"] == 1.0


def test_bleu_is_tokenised_and_signed_by_the_language_of_the_references():
    assert "|eff:yes|tok:zh|smooth:exp|version:2." in bleu(ENGLISH, CHINESE)["bleuSignature"]
    assert "|tok:13a|" in bleu(CHINESE, ENGLISH)["bleuSignature"]


@pytest.mark.parametrize(
    ("texts", "verdict"),
    [
        (["\u6cf5"], True),
        (["\u6cf5 P"], False),
        (["\u6cf5\u7684 P"], True),
        (["pump", "\u6cf5"], False),
        (["\u6cf5", ", . !"], True),
        ([], False),
    ],
)
def test_references_are_chinese_where_most_letters_are(texts, verdict):
    assert is_chinese(texts) is verdict


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The PUMP, at 3.5 bar!", ["the", "pump", "at", "3", "5", "bar"]),
        ("\u6cf5P-101\u7684\u538b\u529b", ["\u6cf5", "p", "101", "\u7684", "\u538b", "\u529b"]),
        ("\uff30\uff35\uff2d\uff30", ["pump"]),
        ("\u30dd\u30f3\u30d7", ["\u30dd", "\u30f3", "\u30d7"]),
        ("\U00020000\u3005", ["\U00020000", "\u3005"]),
        ("_ \u3002", []),
    ],
)
def test_tokens_are_words_and_single_characters(text, tokens):
    assert Tokens().tokenize(text) == tokens


@settings(max_examples=25)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=4))
def test_scores_of_any_text_are_between_0_and_1(pairs):
    found = numbers(*zip(*pairs, strict=True))
    assert all(value is None or 0 <= value <= 1 for value in found)
