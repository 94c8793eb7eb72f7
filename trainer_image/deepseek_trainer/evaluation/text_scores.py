"""How near the model's answers come to the references, by the words and characters that they share.

BLEU-4 and ROUGE, each from 0 to 1; text that is the same scores 1 in any language.  Pure.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

Json = dict[str, Any]

_HAN: Final = r"\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_KANA: Final = r"\u3040-\u30ff"
_HAN_CHARACTER: Final = re.compile(f"[{_HAN}]")
# Chinese and Japanese put no space between words: each character is a token.
_TOKEN: Final = re.compile(rf"[{_HAN}{_KANA}]|[^\W_{_HAN}{_KANA}]+")
ROUGE: Final = {"rouge1": 1, "rouge2": 2, "rougeL": 1}  # how many tokens a reference must have for it


class Tokens:
    """The tokenizer that `RougeScorer` uses."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case words and numbers, and each Han or kana character by itself; punctuation is left out."""
        return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def text_scores(answers: Sequence[str], references: Sequence[str]) -> Json:
    """{"bleu", "bleuSignature", "rouge1", "rouge2", "rougeL"} of one answer to each reference, at least one."""
    return bleu(answers, references) | rouge(answers, references)


def bleu(answers: Sequence[str], references: Sequence[str]) -> Json:
    """sacrebleu's corpus BLEU-4, divided by 100, and the signature that says how it was made.

    Its order is effective: if no answer has four tokens, the longest n-grams that there are stand in for them, so that
    the same short text still scores 1.
    """
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415 a third of a second, for the jobs that ask questions

    metric = BLEU(tokenize="zh" if is_chinese(references) else "13a", effective_order=True)
    score = metric.corpus_score(answers, [references]).score
    return {"bleu": min(1.0, score / 100), "bleuSignature": str(metric.get_signature())}


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float | None]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, over the references that have enough tokens; None if none has.

    ROUGE-2 needs two tokens: a reference of one word is left out of its mean, and not counted as 0.
    """
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415 two seconds of import

    scorer = RougeScorer(list(ROUGE), tokenizer=Tokens())
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    lengths = [len(Tokens().tokenize(reference)) for reference in references]
    return {
        name: _mean([score[name].fmeasure for score, length in zip(scores, lengths, strict=True) if length >= least])
        for name, least in ROUGE.items()
    }


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether more than half of all letters and digits are Han characters."""
    whole = "".join(texts)
    return 2 * len(_HAN_CHARACTER.findall(whole)) > sum(map(str.isalnum, whole))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
