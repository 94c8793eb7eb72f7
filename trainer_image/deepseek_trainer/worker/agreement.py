"""Ranks share a failure before any of them acts on it: what one rank cannot do, no rank does."""

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
from deepseek_trainer.contract.foreign import first_line
from deepseek_trainer.storage.access import denied_on_volume
from deepseek_trainer.storage.durable import STORAGE_ERRORS

Exchange = Callable[[Any], list[Any]]  # a JSON value of each rank -> those of all ranks, in rank order

_ERRORS: Final = {
    int(kind.code): kind for kind in (ConfigError, DataError, NotFiniteError, TryAgainError, IntegrityError)
}


def alone(value: Any) -> list[Any]:
    """The exchange of a single rank."""
    return [value]


def agree(exchange: Exchange, work: Callable[[], Any]) -> list[Any]:
    """Do `work` on this rank while every other rank does its own; returns the JSON values of all, in rank order.

    If it raises an Exception on one rank, all ranks raise an error with the same exit code.
    """
    value: Any = None
    failure: Exception | None = None
    try:
        value = work()
    except OSError as error:
        # An error of the volume stays as it is: it ends this worker, and the others wait for its next attempt.
        failure = denied_on_volume(error) or (error if error.errno in STORAGE_ERRORS else _try_again(error))
    except Exception as error:  # any error: the other ranks must not wait for this one
        failure = error
    outcomes = exchange({"value": value, "failure": _to_json(failure) if failure else None})
    if failure:
        raise failure
    for rank, outcome in enumerate(outcomes):
        if other := outcome["failure"]:
            raise _ERRORS.get(other["code"], JobError)(f"rank {rank}: {other['problem']}", hint=other["hint"])
    return [outcome["value"] for outcome in outcomes]


def _to_json(failure: Exception) -> dict[str, Any]:
    if isinstance(failure, OSError):
        failure = _try_again(failure)
    known = failure if isinstance(failure, JobError) else JobError(f"{type(failure).__name__}: {first_line(failure)}")
    return {"code": int(known.code), "problem": known.problem, "hint": known.hint}


def _try_again(error: OSError) -> TryAgainError:
    return TryAgainError(f"the storage failed: {first_line(error)}")
