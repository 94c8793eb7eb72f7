"""What one rank cannot do, no rank does: failures are shared before anyone acts on them."""

from collections.abc import Callable
from typing import Any, Final

from deepseek_trainer.contract.errors import (
    ConfigError,
    DataError,
    IntegrityError,
    JobError,
    NotFiniteError,
    TryAgainError,
)

Exchange = Callable[[Any], list[Any]]  # a JSON value of each rank -> those of all ranks, in rank order

_ERRORS: Final = {
    int(kind.code): kind for kind in (ConfigError, DataError, NotFiniteError, TryAgainError, IntegrityError)
}


def alone(value: Any) -> list[Any]:
    """The exchange of a single rank."""
    return [value]


def agree(exchange: Exchange, work: Callable[[], Any]) -> list[Any]:
    """Do `work` on this rank, as every other rank does its own; the JSON values of all ranks, in rank order.

    Where it raises a JobError or OSError on one rank, an error of the same exit code is raised on all.
    """
    value, failure = None, None
    try:
        value = work()
    except JobError as error:
        failure = error
    except OSError as error:
        failure = TryAgainError(f"the storage failed: {error}")
    told = {"code": int(failure.code), "problem": failure.problem, "hint": failure.hint} if failure else None
    outcomes = exchange({"value": value, "failure": told})
    if failure:
        raise failure
    for rank, outcome in enumerate(outcomes):
        if told := outcome["failure"]:
            raise _ERRORS.get(told["code"], JobError)(f"rank {rank}: {told['problem']}", hint=told["hint"])
    return [outcome["value"] for outcome in outcomes]
