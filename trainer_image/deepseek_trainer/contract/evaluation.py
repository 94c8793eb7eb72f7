"""Measuring the result."""

from typing import Annotated

from pydantic import Field

from deepseek_trainer.contract.rules import Model


class EvaluationSpec(Model):
    """Loss and perplexity on the held-out records, and samples of what the model writes before and after training."""

    interval_steps: Annotated[int, Field(ge=1, description="Optimizer steps between evaluations.")] = 100
    max_rows: Annotated[int, Field(ge=1, description="Held-out rows used at most.")] = 1000
    generations: Annotated[
        int,
        Field(ge=0, le=1000, description="Held-out samples written before and after training."),
    ] = 4
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, description="Length of a sample in tokens.")] = 48
