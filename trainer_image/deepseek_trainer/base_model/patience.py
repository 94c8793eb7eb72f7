"""Waits for native code, which nothing in this process can end, only so long."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NoReturn, TypeVar

from deepseek_trainer.contract.errors import ConfigError

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T], what: str, *, hint: str) -> T:
    """What `work` returns or raises.  Raises ConfigError about `what` once it takes longer.

    Then the work goes on, in a thread that ends with this process.
    """
    outcomes: SimpleQueue[Callable[[], T]] = SimpleQueue()
    threading.Thread(target=lambda: outcomes.put(_outcome(work)), daemon=True).start()
    try:
        outcome = outcomes.get(timeout=seconds)
    except Empty:
        raise ConfigError(f"{what} takes more than {seconds:.0f} s", hint=hint) from None
    return outcome()


def _outcome(work: Callable[[], T]) -> Callable[[], T]:
    try:
        value = work()
    except BaseException as error:  # raised again by whoever waits
        caught = error
        return lambda: _raise(caught)
    return lambda: value


def _raise(error: BaseException) -> NoReturn:
    raise error
