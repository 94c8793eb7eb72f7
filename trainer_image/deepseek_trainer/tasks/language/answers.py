"""A model's answers to held-out prompts, and whether they are right.

Shapes: B prompts in a batch, T tokens of the longest of them.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.model.loading import transformer
from deepseek_trainer.model.modes import answering
from deepseek_trainer.tasks.language.tokenizer import pad_id, prompt_ids, stop_ids

THOUGHT_ENDS: Final = "</think>"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a right answer says: each of `must_contain` or, if that is empty, `text` and nothing else."""

    text: str
    must_contain: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    right: int
    total: int

    def __str__(self) -> str:
        return f"{self.right} of {self.total}"


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Any],
    max_new_tokens: int,
    *,
    encode: Callable[[PreTrainedTokenizerFast, Any], list[int]] = prompt_ids,
) -> list[str]:
    """The model's greedy answers to a batch of questions, without special tokens.

    The end of a turn, or of the text, ends one early.  Prompts are padded on the left, so that each answer starts right
    after its prompt.  `encode` gives the tokens of each.
    """
    if not prompts:
        return []
    with answering(model):
        return _answers(model, tokenizer, [encode(tokenizer, prompt) for prompt in prompts], max_new_tokens)


def score_answers(answers: Sequence[str], references: Sequence[Reference]) -> Score:
    """How many answers are right: see `is_right`."""
    verdicts = [is_right(text, reference) for text, reference in zip(answers, references, strict=True)]
    return Score(sum(verdicts), len(verdicts))


def is_right(text: str, reference: Reference) -> bool:
    """Whether an answer has every required phrase as whole words, or else equals the reference.

    Case, punctuation and white space do not count.  Nothing is judged by its meaning: a right answer
    in other words is counted as wrong, and a wrong one that happens to hold the phrases as right.  What a model thinks
    before it answers does not count either.
    """
    words = _words(text.rpartition(THOUGHT_ENDS)[2])
    if reference.must_contain:
        return all(f" {_words(phrase)} " in f" {words} " for phrase in reference.must_contain)
    return words == _words(reference.text)


def _words(text: str) -> str:
    """Lower-case words and numbers, one space apart; a number keeps its decimal point."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if c.isalnum() or _is_decimal_point(folded, i) else " " for i, c in enumerate(folded))
    return " ".join(kept.split())


def _is_decimal_point(text: str, i: int) -> bool:
    return text[i] == "." and text[i - 1 : i].isdigit() and text[i + 1 : i + 2].isdigit()


def _answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, questions: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    inner: Any = transformer(model)
    tokens_BT, attended_BT = _left_padded(questions, pad_id(tokenizer), inner.device)
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids(tokenizer)),
        pad_token_id=pad_id(tokenizer),
        use_cache=True,
    )
    # Each rank answers by itself: sharded weights have been made whole for that.
    grown_BT = inner.generate(tokens_BT, attention_mask=attended_BT, generation_config=greedy, synced_gpus=False)
    with understood("the tokenizer, on an answer,", quoting=False):
        texts = tokenizer.batch_decode(grown_BT[:, tokens_BT.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _left_padded(questions: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask, int64 of shape BT."""
    longest = max(map(len, questions))
    tokens = [[pad] * (longest - len(ids)) + ids for ids in questions]
    attended = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in questions]
    return torch.tensor(tokens, device=device), torch.tensor(attended, device=device)
