"""The progress of a run as JSON: rank 0 serves it on /progress and leaves it in its termination log.

The operator and `dstj` read it from a process that runs a customer's code: a value of the wrong type or size is None.
"""

from functools import cache
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from deepseek_trainer.contract.foreign import count, json_object, number, text
from deepseek_trainer.contract.rules import Model

MOST_NAMES, _LONGEST_NAME = 5, 63

Count = Annotated[int | None, BeforeValidator(count)]
Number = Annotated[float | None, BeforeValidator(number)]
Text = Annotated[str | None, BeforeValidator(text)]


def _whole(value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validated(value)
    except ValidationError:
        return None


class Checkpoint(Model):
    """The newest complete checkpoint: read as a whole or not at all."""

    step: Annotated[int, BeforeValidator(count)]
    time: str | None = None  # RFC 3339
    size_bytes: Count = None
    sealed: bool = False
    key_id: str | None = None
    manifest_digest: str | None = None
    seconds: Number = None  # until it was committed
    stall_seconds: Number = None  # of them, those that held up training


def _counts(value: Any) -> dict[str, int] | None:
    """Counts by name, of which few are told and none is long."""
    if not isinstance(value, dict):
        return None
    known = {text(name): count(number) for name, number in list(value.items())[:MOST_NAMES]}
    return {name[:_LONGEST_NAME]: number for name, number in known.items() if name and number}


class RecordCounts(Model):
    """What became of all records, those of training and those held out: read as a whole or not at all."""

    records: Annotated[int, BeforeValidator(count)]
    dropped: Annotated[int, BeforeValidator(count)] = 0  # nothing is left of them to learn
    cut: Annotated[int, BeforeValidator(count)] = 0  # trained on up to the end of a row
    skipped: Annotated[int, BeforeValidator(count)] = 0  # bad
    rows: Annotated[int, BeforeValidator(count)] = 0  # that are trained on
    batch: Annotated[int, BeforeValidator(count)] = 0  # of them in a step
    unused_fields: Annotated[int, BeforeValidator(count)] = 0  # of the records, that nothing is learned from
    unused: Annotated[dict[str, int] | None, BeforeValidator(_counts)] = None  # records by field; None: private


class Progress(Model):
    """The latest facts of a run; a field is there once its fact is known."""

    stage: Text = None
    step: Count = None
    max_steps: Count = None
    epoch: Number = None
    loss: Number = None
    eval_loss: Number = None
    learning_rate: Number = None
    grad_norm: Number = None
    tokens_per_second: Number = None
    images_per_second: Number = None
    samples_per_second: Number = None
    mfu: Number = None
    hfu: Number = None
    data_wait_share: Number = None
    peak_memory_bytes: Count = None
    rank_skew: Number = None
    slowest_rank: Count = None
    eta_seconds: Count = None
    restart_count: Count = None
    records: Annotated[RecordCounts | None, WrapValidator(_whole)] = None
    stale_evaluations: Count = None  # since the best one, once they have stopped the run early
    initial_eval_loss: Number = None  # of the model before training
    final_eval_loss: Number = None  # of the weights that are the result
    last_checkpoint: Annotated[Checkpoint | None, WrapValidator(_whole)] = None
    updated_time: Text = None

    @classmethod
    def read(cls, content: str | bytes) -> Self | None:
        """The progress that `content` tells of; None if it is no JSON object, or an empty one."""
        fields = json_object(content)
        return cls.model_validate(fields) if fields else None

    def to_json(self) -> bytes:
        """The facts that are known; null for those that JSON cannot hold, such as NaN."""
        return self.model_dump_json(by_alias=True, exclude_unset=True).encode()


@cache
def fields() -> frozenset[str]:
    """The names of all facts, as the JSON spells them."""
    return frozenset(field.alias or name for name, field in Progress.model_fields.items())
