"""How good a model is: loss on held-out rows, and its answers to held-out prompts.

Shapes: B prompts or rows in a batch, T tokens of the longest of them.
"""

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

from deepseek_trainer.data.dataset import Batch, Rows
from deepseek_trainer.language.conversation import Question
from deepseek_trainer.language.packing import IGNORED
from deepseek_trainer.language.tokenizer import pad_id, prompt_ids
from deepseek_trainer.model.causal_lm import causal_loss, transformer

Reduce = Callable[[Sequence[float]], list[float]]  # element-wise sum over all ranks, as `World.sum`


@dataclass(frozen=True, slots=True)
class EvalResult:
    loss: float  # [nats/token], of pairs of answers [nats/pair]; NaN where nothing is learned
    bits_per_byte: float | None = None  # None where the bytes of the learned text are not known
    of_pairs: Mapping[str, float] = field(default_factory=dict)  # means of `PairLoss.measures`; empty for other data

    def figures(self) -> dict[str, float | None]:
        """What there is to tell beside the loss, by name."""
        return dict(self.of_pairs) or {"perplexity": self.perplexity, "bitsPerByte": self.bits_per_byte}

    @property
    def perplexity(self) -> float | None:
        """None where it is no number that a float can hold."""
        return math.exp(self.loss) if self.loss < 700 else None  # exp(710) overflows


@dataclass(frozen=True, slots=True)
class Reference:
    """What a right answer says: each of `must_contain`, or, where there is none, `text` and nothing else."""

    text: str
    must_contain: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    right: int
    total: int

    def __str__(self) -> str:
        return f"{self.right} of {self.total}"


class Loss(Protocol):
    """Sums over a batch: of `count` losses and, where there are `measures`, of as many of each; see `SummedLoss`."""

    measures: tuple[str, ...]

    def count(self, batch: Batch) -> int: ...
    def __call__(self, batch: Batch) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _TokenLoss:
    model: nn.Module
    measures: tuple[str, ...] = ()

    def count(self, batch: Batch) -> int:
        return batch.num_targets

    def __call__(self, batch: Batch) -> Tensor:
        return causal_loss(self.model, batch)[0]


def evaluate_loss(
    model: nn.Module,
    rows: Rows,
    *,
    max_rows: int,
    batch_size: int,
    rank: int,
    world_size: int,
    reduce: Reduce,
    before_batch: Callable[[], None] = lambda: None,
    loss: Loss | None = None,
    token_bytes: Tensor | None = None,
) -> EvalResult:
    """Mean loss over the learned tokens, or pairs, of the first `max_rows` rows, each row on exactly one rank.

    With `token_bytes` (`tokenizer.token_bytes`) also in bits per UTF-8 byte of the learned text; ends of text cost
    nats and are no bytes.  The same on every rank, and up to rounding for any number of ranks; every rank must call
    it, for `reduce` is a collective.  `before_batch` may be one too: it is called as often on each rank, and what it
    raises ends the evaluation.  `loss` is called as often on each rank, too; by default `causal_loss`.  Leaves the
    model in the mode it was in.
    """
    summed = loss or _TokenLoss(model)
    count = min(len(rows), max_rows)
    mine = range(rank, count, world_size)
    sums, losses, size = torch.zeros(1 + len(summed.measures), dtype=torch.float64), 0, 0
    with answering(model):
        for start in range(0, math.ceil(count / world_size), batch_size):
            before_batch()
            part = mine[start : start + batch_size]
            batch = rows.batch(part or [0])  # where weights are sharded, a rank without rows is needed all the same
            batch_sums = summed(batch).reshape(-1).cpu()
            if part:
                sums += batch_sums
                losses += summed.count(batch)
                size += 0 if token_bytes is None else _learned_bytes(batch, token_bytes)
    *all_sums, all_losses, all_bytes = reduce([*sums.tolist(), float(losses), float(size)])
    loss_mean, *means = (each / all_losses if all_losses else math.nan for each in all_sums)
    bits_per_byte = all_sums[0] / math.log(2) / all_bytes if all_bytes else None
    return EvalResult(loss_mean, bits_per_byte, dict(zip(summed.measures, means, strict=True)))


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Question],
    max_new_tokens: int,
    *,
    encode: Callable[[PreTrainedTokenizerFast, Any], list[int]] = prompt_ids,
) -> list[str]:
    """The model's greedy answers to a batch of questions, without special tokens; an end of text ends one early.

    Prompts are padded on the left, so that each answer starts right after its prompt.
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
    in other words is counted as wrong, and a wrong one that happens to hold the phrases as right.
    """
    words = _words(text)
    if reference.must_contain:
        return all(f" {_words(phrase)} " in f" {words} " for phrase in reference.must_contain)
    return words == _words(reference.text)


def _learned_bytes(batch: Batch, token_bytes: Tensor) -> int:
    return int(token_bytes[batch.targets_BT[batch.targets_BT != IGNORED]].sum())


def _words(text: str) -> str:
    """Lower-case words and numbers, one space apart; a number keeps its decimal point."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if c.isalnum() or _is_decimal_point(folded, i) else " " for i, c in enumerate(folded))
    return " ".join(kept.split())


def _is_decimal_point(text: str, i: int) -> bool:
    return text[i] == "." and text[i - 1 : i].isdigit() and text[i + 1 : i + 2].isdigit()


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: DDP and checkpoints would trip over its tensors
            yield
    finally:
        model.train(was_training)


def _answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, questions: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    inner: Any = transformer(model)
    tokens_BT, attended_BT = _left_padded(questions, pad_id(tokenizer), inner.device)
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_id(tokenizer),
        use_cache=True,
    )
    # Each rank answers by itself, also where weights are sharded: they are whole for that.
    grown_BT = inner.generate(tokens_BT, attention_mask=attended_BT, generation_config=greedy, synced_gpus=False)
    texts = tokenizer.batch_decode(grown_BT[:, tokens_BT.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _left_padded(questions: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask, int64 of shape BT."""
    longest = max(map(len, questions))
    tokens = [[pad] * (longest - len(ids)) + ids for ids in questions]
    attended = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in questions]
    return torch.tensor(tokens, device=device), torch.tensor(attended, device=device)
