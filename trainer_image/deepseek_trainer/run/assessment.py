"""What a run's model can do, before and after training: it answers held-out prompts, and chooses among labels.

Every rank asks its share of the prompts, and all ranks learn all answers.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from torch import nn

from deepseek_trainer.contract.data import DataFormat
from deepseek_trainer.data.dataset import Prepared
from deepseek_trainer.data.shards import Prompt
from deepseek_trainer.evaluation.classification import HEADLINES, classification, label_scores
from deepseek_trainer.evaluation.evaluate import EvalResult, Reference, answer, score_answers
from deepseek_trainer.evaluation.text_scores import text_scores
from deepseek_trainer.language.conversation import Question
from deepseek_trainer.language.tokenizer import prompt_ids, text_ids
from deepseek_trainer.telemetry.events import finite
from deepseek_trainer.training.loop import Loop

Json = dict[str, Any]
T = TypeVar("T")

ANSWERED_AT_ONCE: Final = 16  # prompts in one batch of a rank


def assessed(loop: Loop, prepared: Prepared, result: EvalResult) -> Json:
    """{"scores": numbers, "answers": texts} of the model as it is, of which `result` is the loss.

    Collective.  Raises StopRequested on a stop, which is heard between batches.
    """
    loop.reporter.stage("evaluating")
    scores: Json = {"loss": finite(result.loss)}
    scores |= {name: finite(value) for name, value in result.figures().items()}
    prompts = prepared.prompts[: loop.config.evaluation.generations]
    answers = _answers(loop, prepared, prompts)
    if prompts and _asks(loop):
        scores |= (measured := _answer_scores(answers, prompts))
        loop.reporter.event("answers", step=loop.state.step, **measured)
    if labels := loop.config.evaluation.labels:
        scores["classification"] = (found := _classified(loop, prepared, labels))
        numbers = {name: found[name] for name in HEADLINES if name in found}
        loop.reporter.event("classification", step=loop.state.step, **numbers)
    return {"scores": scores, "answers": answers}


def _answers(loop: Loop, prepared: Prepared, prompts: Sequence[Prompt]) -> list[str]:
    length = loop.config.evaluation.max_new_tokens
    encode = prompt_ids if _asks(loop) else text_ids
    return _shared(
        loop,
        prompts,
        ANSWERED_AT_ONCE,
        lambda model, mine: answer(model, prepared.tokenizer, mine, length, encode=encode),
    )


def _answer_scores(answers: Sequence[str], prompts: Sequence[Prompt]) -> Json:
    score = score_answers(answers, [Reference(prompt.response, prompt.must_contain) for prompt in prompts])
    return {"right": score.right, "asked": score.total} | text_scores(answers, [p.response for p in prompts])


def _classified(loop: Loop, prepared: Prepared, labels: Sequence[str]) -> Json:
    prompts = prepared.prompts[: loop.config.evaluation.max_rows]
    batch_size = loop.config.optimization.micro_batch_size
    scores = _shared(
        loop,
        prompts,
        max(1, batch_size // len(labels)),  # one forward pass, if that has room for all labels
        lambda model, mine: label_scores(model, prepared.tokenizer, mine, labels, batch_size),
    )
    return classification([prompt.response for prompt in prompts], scores, labels)


def _shared(
    loop: Loop, prompts: Sequence[Prompt], at_once: int, ask: Callable[[nn.Module, Sequence[Question]], list[T]]
) -> list[T]:
    """What `ask` gives for all prompts, in order, on every rank; each rank asks its share, `at_once` at a time."""
    world, found = loop.world, []
    for start in range(0, len(prompts), at_once * world.size):
        loop.leave_if_stopped()
        part = prompts[start : start + at_once * world.size]
        with loop.learner.finished() as model, loop.learner.autocast:
            mine = ask(model, [prompt.prompt for prompt in part[world.rank :: world.size]])
        shares = world.gather(mine)
        found += [shares[i % world.size][i // world.size] for i in range(len(part))]
    return found


def _asks(loop: Loop) -> bool:
    """Whether prompts are questions; else they are openings of texts, and no continuation is right or wrong."""
    return loop.config.data.format is not DataFormat.TEXT
