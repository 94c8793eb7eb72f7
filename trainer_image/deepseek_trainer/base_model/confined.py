"""Runs what the files of a base model decide in a process of its own, with a bound on time and memory.

A template can loop for ever, a tokenizer's pattern takes exponential time, a replacement makes any text of one letter.
No bound within a process holds for all of that.
"""

import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

from deepseek_trainer.base_model.guard import cause, is_panic
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError, JobError
from deepseek_trainer.contract.foreign import json_object
from deepseek_trainer.worker.process import die_with_parent, forbid_core_dumps

T = TypeVar("T")

_ANSWER: Final = 1 << 30  # [bytes] at most
_PATIENCE: Final = 10  # [s] of waiting for each second of computing: the machine may be busy with other things
_READ: Final = 1 << 20  # [bytes]


def confined(work: Callable[[], T], what: str, *, seconds: int, hint: str, memory: int, quoting: bool = True) -> T:
    """What `work` returns, which must be JSON.  It is done in a child process, so that it changes nothing here.

    Raises what `work` raises where that is a ConfigError, and ConfigError about `what` in place of any other error, and
    where it computes for more than `seconds`, takes more than `memory` [bytes] or ends the process.  Without `quoting`
    only the kind of another error is told: it may quote what the work was given.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _leave_with(lambda: _outcome(work, quoting=quoting), writing, seconds, memory)
    os.close(writing)
    try:
        answer = _received(reading, time.monotonic() + _PATIENCE * seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    value: T = _judged(answer, os.waitstatus_to_exitcode(status), what, seconds, hint)["value"]
    return value


def _judged(answer: bytes | None, exit_code: int, what: str, seconds: int, hint: str) -> dict[str, Any]:
    if answer is None or exit_code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise ConfigError(f"{what} takes more than {seconds} s of computing", hint=hint)
    if not (found := json_object(answer)):
        raise ConfigError(f"{what} takes more memory than there may be, or ends the process ({exit_code})", hint=hint)
    if "problem" in found:
        raise ConfigError(found["problem"], hint=found["hint"])
    if "error" in found:
        raise ConfigError(f"{what} fails: {found['error']}", hint=hint)
    return found


def _received(reading: int, deadline: float) -> bytes | None:
    """All that the child writes; None if that is too much or too late."""
    received = bytearray()
    while (left := deadline - time.monotonic()) > 0 and len(received) <= _ANSWER:
        if not select.select([reading], [], [], left)[0]:
            break
        if not (piece := os.read(reading, _READ)):
            return bytes(received)
        received += piece
    return None


def _leave_with(outcome: Callable[[], bytes], writing: int, seconds: int, memory: int) -> NoReturn:
    """Write the outcome, and end this process, a copy of its parent, without the parent's teardown."""
    try:
        _shut_in(seconds, memory)
        answer = memoryview(outcome())
        while answer:
            answer = answer[os.write(writing, answer) :]
    finally:
        os._exit(0)


def _shut_in(seconds: int, memory: int) -> None:
    die_with_parent()
    forbid_core_dumps()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # a panic writes its whole stack
        os.dup2(nowhere, descriptor)
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_AS, _address_space() + memory)


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (lower, lower))


def _address_space() -> int:
    """What this process has mapped [bytes]."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  nothing of pathlib is needed in a fresh fork
        return int(file.read().split()[0]) * resource.getpagesize()


def _outcome(work: Callable[[], Any], *, quoting: bool) -> bytes:
    told = cause if quoting else lambda error: type(error).__name__
    try:
        return json_text({"value": work()}).encode()
    except MemoryError:
        return b""
    except JobError as error:
        return json_text({"problem": error.problem, "hint": error.hint}).encode()
    except Exception as error:
        return json_text({"error": told(error)}).encode()
    except BaseException as error:
        if not is_panic(error):
            raise
        return json_text({"error": told(error)}).encode()
