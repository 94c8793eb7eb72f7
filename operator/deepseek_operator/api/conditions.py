"""The conditions that every kind reports in its status, and the times in them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from deepseek_trainer.contract.foreign import legible, one_line
from deepseek_trainer.contract.rules import Model
from deepseek_trainer.contract.times import rfc3339

MAX_TEXT: Final = 32768  # [characters]
MAX_WORD: Final = 253  # [characters] of a name or a reason, which others may have chosen


def whole_seconds(time: datetime) -> datetime:
    """The time in UTC without fractions of a second, which is the precision of metav1.Time."""
    return time.astimezone(UTC).replace(microsecond=0)


Time = Annotated[datetime, AfterValidator(whole_seconds), PlainSerializer(rfc3339, return_type=str, when_used="json")]
Text = Annotated[str, AfterValidator(lambda text: legible(text)[:MAX_TEXT]), Field(max_length=MAX_TEXT)]
Word = Annotated[str, AfterValidator(lambda word: one_line(word, MAX_WORD))]


class Condition(Model):
    """As metav1.Condition."""

    list_map_keys: ClassVar = ("type",)

    type: Annotated[str, Field(max_length=316, description="What the condition is about, for example Running.")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="True, False or Unknown.")]
    observed_generation: Annotated[int, Field(ge=0, description="Generation of the spec that it was computed for.")] = 0
    last_transition_time: Annotated[Time, Field(description="When status last changed.")]
    reason: Annotated[Word, Field(max_length=1024, description="Why, as one CamelCase word for machines.")]
    message: Annotated[Text, Field(description="Why, for people, with the way out.")] = ""


def merged(old: Iterable[Condition], new: Iterable[Condition]) -> tuple[Condition, ...]:
    """`old` with `new` laid over it, sorted by type.  lastTransitionTime moves only where the status changes."""
    conditions = {condition.type: condition for condition in old}
    for condition in new:
        before = conditions.get(condition.type)
        if before is not None and before.status == condition.status:
            condition = condition.model_copy(update={"last_transition_time": before.last_transition_time})  # noqa: PLW2901
        conditions[condition.type] = condition
    return tuple(conditions[type_] for type_ in sorted(conditions))
