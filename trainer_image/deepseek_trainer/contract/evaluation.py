"""Measuring the result."""

from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule

Label = Annotated[str, Field(min_length=1, max_length=256)]
Labels = Annotated[tuple[Label, ...], Field(min_length=2, max_length=64)]


class EvaluationSpec(Model):
    """Loss and perplexity on the held-out records, and samples of what the model writes before and after training."""

    interval_steps: Annotated[int, Field(ge=1, description="Optimizer steps between evaluations.")] = 100
    max_rows: Annotated[int, Field(ge=1, description="Held-out rows used at most.")] = 1000
    generations: Annotated[
        int,
        Field(ge=0, le=1000, description="Held-out samples written before and after training, at most maxRows."),
    ] = 4
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, description="Length of a sample in tokens.")] = 48
    require_improvement: Annotated[
        bool,
        Field(
            description="Fail, with exit code 70 and without a result, unless the held-out loss of the result is below "
            "that of the model before training; the checkpoints stay. Default: the condition Improved tells it."
        ),
    ] = False
    labels: Annotated[
        Labels | None,
        Field(
            description="Classes of Instruction data: the responses that a held-out record may have. The model chooses "
            "one by likelihood for each of up to maxRows prompts, 1000 at most. Default: nothing is classified."
        ),
    ] = None

    rules: ClassVar = (
        Rule(
            "!has(self.labels) || self.labels.all(a, self.labels.exists_one(b, b == a))",
            "labels must differ from each other",
            lambda self: len(set(self.labels or ())) == len(self.labels or ()),
        ),
    )
