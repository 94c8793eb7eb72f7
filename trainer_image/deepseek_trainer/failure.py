"""How a worker tells why it ended: an exit code, and a few lines of JSON that reach the job's status."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Self

from deepseek_trainer.contract.errors import JobError
from deepseek_trainer.contract.names import ENV_TERMINATION_LOG, ExitCode

MAX_MESSAGE = 1024  # [characters]; the kubelet keeps 4096 bytes of a termination message


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank, or the worker as a whole (rank None), ended."""

    exit_code: int
    reason: str
    message: str
    rank: int | None = None

    @classmethod
    def of(cls, error: BaseException, rank: int | None = None) -> Self:
        """What to tell about an exception: one line of ours, or the last lines of a traceback."""
        if isinstance(error, JobError):
            return cls(error.code, _reason(error), str(error)[:MAX_MESSAGE], rank)
        if isinstance(error, OSError):
            return cls(ExitCode.TRY_AGAIN, "Storage", f"{error} (hint: see the volume and the node's kernel log)", rank)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; not imported here
            hint = "lower optimization.microBatchSize or data.sequenceLength, or ask for more memory"
            return cls(ExitCode.TRY_AGAIN, "OutOfMemory", f"{str(error).splitlines()[0]} (hint: {hint})", rank)
        lines = "".join(traceback.format_exception(error)).strip().splitlines()
        return cls(ExitCode.INTERNAL, type(error).__name__, "\n".join(lines[-8:])[-MAX_MESSAGE:], rank)

    @classmethod
    def of_exit(cls, exit_code: int, rank: int | None = None) -> Self:
        """What to tell about a process that could not speak for itself."""
        if exit_code == -signal.SIGKILL:
            hint = "killed (SIGKILL): often the kernel's or the kubelet's answer to too much memory"
            return cls(ExitCode.TRY_AGAIN, "Killed", hint, rank)
        if exit_code < 0:
            return cls(ExitCode.TRY_AGAIN, signal.Signals(-exit_code).name, f"ended by signal {-exit_code}", rank)
        return cls(exit_code, "Exited", f"exited with code {exit_code}", rank)

    def to_json(self) -> str:
        """The termination message: camelCase, as the operator reads it."""
        fields = {"rank": self.rank, "exitCode": int(self.exit_code), "reason": self.reason, "message": self.message}
        return json.dumps({key: value for key, value in fields.items() if value is not None})

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Self | None:
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError):
            return None  # none yet, or still being written


def _reason(error: JobError) -> str:
    return type(error).__name__.removesuffix("Error")


def exit_with(failure: Failure, environ: Mapping[str, str] = os.environ) -> NoReturn:
    """End this process: the message on stderr and in the termination log, the code as the exit status."""
    print(f"{failure.reason}: {failure.message}", file=sys.stderr, flush=True)  # noqa: T201
    if log := environ.get(ENV_TERMINATION_LOG):
        Path(log).write_text(failure.to_json())
    sys.exit(failure.exit_code)


def run(main: Callable[[], None]) -> None:
    """Run an entry point; any exception becomes its exit code and termination message."""
    try:
        main()
    except Exception as error:  # the edge: nothing may leave without a code
        exit_with(Failure.of(error))
