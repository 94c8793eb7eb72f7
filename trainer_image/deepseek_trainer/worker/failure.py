"""How a worker reports why it ended: an exit code, and a few lines of JSON that reach the job's status."""

import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from deepseek_trainer.contract import failure as contract
from deepseek_trainer.contract.errors import OUT_OF_MEMORY, PEER_GONE, STORAGE, JobError
from deepseek_trainer.contract.foreign import first_line, one_line
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import NOT_RETRYABLE, ExitCode, termination_log
from deepseek_trainer.storage.access import denied_on_volume
from deepseek_trainer.storage.durable import STORAGE_ERRORS, replace_file
from deepseek_trainer.worker.process import StopRequested

MAX_MESSAGE: Final = 1024  # [characters]
# In a bare RuntimeError: torch on the CPU; CUDA where torch's own allocator did not ask.
NO_MEMORY: Final = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory")
# Of torch, by their names: it is not imported here.  Some say it only in the text of a bare RuntimeError.
_OF_DEVICE: Final = frozenset(
    {"AcceleratorError", "DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}
)
_SAY_DEVICE: Final = ("CUDA error", "CUDA driver error", "NCCL", "cuDNN", "CUBLAS_STATUS", "CUDNN_STATUS", "gloo")


class WordlessError(Exception):
    """An error that none of our checks foresaw, without what it says."""

    def __init__(self, error: Exception) -> None:
        super().__init__("what it says is left out, for it may quote what the job seals")
        self.kind = type(error).__name__


@contextmanager
def discreet(is_private: bool) -> Iterator[None]:
    """Let no unforeseen error of the block say more than its kind and its place in the code, if the job is private.

    Errors of ours name places; those of the operating system name files.
    """
    try:
        yield
    except (JobError, OSError, StopRequested):
        raise
    except Exception as error:
        if not is_private or is_out_of_memory(error):
            raise
        raise WordlessError(error).with_traceback(error.__traceback__) from None


@dataclass(frozen=True, slots=True)
class Failure(contract.Failure):
    """Made from what ended a process, and handed on to the launcher by a file."""

    @classmethod
    def of(cls, error: BaseException, rank: int | None = None) -> Self:
        """The failure that an exception means: its message if the error is ours, else the end of the traceback."""
        error = denied_on_volume(error) or error
        if isinstance(error, JobError):
            return cls(error.code, type(error).__name__.removesuffix("Error"), one_line(str(error), MAX_MESSAGE), rank)
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            text = f"{one_line(str(error), MAX_MESSAGE)} (hint: see the volume and the node's kernel log)"
            return cls(ExitCode.TRY_AGAIN, STORAGE, text, rank)
        if is_out_of_memory(error):
            hint = "lower optimization.microBatchSize or data.sequenceLength, or ask for more memory"
            text = f"{first_line(error) or 'out of memory'} (hint: {hint})"
            return cls(ExitCode.TRY_AGAIN, OUT_OF_MEMORY, text, rank)
        return cls(ExitCode.INTERNAL, _kind(error), _traceback(error), rank)

    @classmethod
    def of_exit(cls, exit_code: int, rank: int | None = None) -> Self:
        """The failure of a process that left none itself."""
        if exit_code == -signal.SIGKILL:
            hint = "killed (SIGKILL): often the kernel's or the kubelet's answer to too much memory"
            return cls(ExitCode.TRY_AGAIN, "Killed", hint, rank)
        if exit_code < 0:
            return cls(ExitCode.TRY_AGAIN, signal.Signals(-exit_code).name, f"ended by signal {-exit_code}", rank)
        return cls(exit_code, "Exited", f"exited with code {exit_code}", rank)

    def save(self, path: Path) -> None:
        """Leave this at `path`, unless there is a failure that is at least as close to the cause."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = Failure.load(path)
            if known is None or self._distance < known._distance:
                replace_file(path, self.to_json())

    @property
    def ends_worker(self) -> bool:
        """Whether the same ranks would fail again in the same pod, so that the job's status must show the failure."""
        return self.exit_code in NOT_RETRYABLE or self.reason in (STORAGE, OUT_OF_MEMORY)

    @property
    def _distance(self) -> int:
        """How far this is from the cause.  What ends the worker is the cause itself; a lost peer has one elsewhere."""
        if self.ends_worker:
            return 0
        return 2 if self.reason == PEER_GONE else 1

    @classmethod
    def load(cls, path: Path) -> Self | None:
        try:
            return cls.read(path.read_bytes().decode())
        except FileNotFoundError:
            return None


def _kind(error: BaseException) -> str:
    return error.kind if isinstance(error, WordlessError) else type(error).__name__


def _traceback(error: BaseException) -> str:
    """The last lines of the traceback.  What the error says of itself is one of them, however many it has."""
    says = f"{_kind(error)}: {error}" if str(error) else _kind(error)
    last = one_line(says, MAX_MESSAGE // 2)
    lines = "".join(traceback.format_tb(error.__traceback__)).splitlines()[-7:]
    return "\n".join([*map(one_line, lines), last])[-MAX_MESSAGE:]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or a GPU ran out of memory.  torch is not imported here: its error is known by its name."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


def is_of_machine(error: BaseException) -> bool:
    """Whether memory, a device or the network failed, whatever was read: a retry may go well."""
    if is_out_of_memory(error) or not _OF_DEVICE.isdisjoint(each.__name__ for each in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SAY_DEVICE)


def exit_with(
    failure: Failure, progress: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> NoReturn:
    """End this process with the failure's exit code.

    Its message goes to stderr, and with `progress` into the termination log.
    """
    _report(failure, environ, progress)
    sys.exit(failure.exit_code)


def leave_with(failure: Failure, environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Like `exit_with`, but at once, from any thread, and without the usual teardown."""
    try:
        _report(failure, environ)
    finally:
        os._exit(failure.exit_code)


def _report(failure: Failure, environ: Mapping[str, str], progress: Mapping[str, Any] | None = None) -> None:
    tell(failure)
    leave_message(failure.to_json(progress), environ)


def tell(failure: contract.Failure, who: str = "") -> None:
    """Print a failure on stderr: a line, and an indented one for each line of a traceback."""
    first, *others = failure.message.split("\n")
    say(f"{who}{failure.reason}: {first}", file=sys.stderr, flush=True)
    for line in others:
        say(f"    {line}", file=sys.stderr, flush=True)


def leave_message(content: bytes, environ: Mapping[str, str] = os.environ) -> None:
    """Write the termination log, if there is one.  Where it cannot be written, the exit code has to do."""
    if log := termination_log(environ):
        try:
            log.write_bytes(content)
        except OSError as error:
            say(f"{log} cannot be written: {error.strerror}", file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> None:
    """Run an entry point.  Any exception becomes an exit code and a termination message."""
    try:
        main()
    except Exception as error:  # the edge: no exception may leave without a code
        exit_with(Failure.of(error))
