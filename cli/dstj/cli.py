"""The entry of `dstj`: arguments in, an exit code out, and every error as one line and a hint."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from dstj.arguments import parser

CTRL_C = 130  # 128 + SIGINT, as a shell reports it
READER_GONE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit codes are listed in `dstj --help`."""
    if sys.stdout is None:  # the caller closed it and wants no output
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  open until the process ends
    try:
        code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = CTRL_C
    except BrokenPipeError:
        code = READER_GONE
    except Exception as error:
        code = _report(error)
    _give_up_output()
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as end:  # --help, or wrong arguments
        return int(end.code or 0)
    from deepseek_trainer.contract.lines import guard_logs
    from deepseek_trainer.worker.process import forbid_core_dumps

    guard_logs()
    forbid_core_dumps()  # they would hold the keys that a command reads
    return int(_command(arguments.target)(arguments))


def _give_up_output() -> None:
    """Keep Python, which flushes stdout once more at exit, from reporting again what was reported."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(target: str) -> Any:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def _report(error: Exception) -> int:
    """Print an error that the user can mend; returns its exit code.  A bug of ours goes on up, for its traceback."""
    from deepseek_trainer.contract.errors import JobError
    from deepseek_trainer.contract.names import ExitCode
    from dstj.screen.errors import print_error

    match error:
        case ExceptionGroup(exceptions=[*errors]) if all(isinstance(e, JobError) for e in errors):
            return max(_report(each) for each in errors)
        case JobError():
            print_error(error.problem, error.hint)
            return error.code
        case OSError(filename=str() | os.PathLike() as name, strerror=str(text)):
            hint = "nothing is lost: put it right and give the same command again"
            print_error(f"{os.fspath(name)}: {text.lower()}", hint)
            return ExitCode.TRY_AGAIN
        case OSError(strerror=str(text)):  # a write to stdout or to an open file: the error has no name
            print_error(f"cannot write: {text.lower()}", "make room and give the same command again: nothing is lost")
            return ExitCode.TRY_AGAIN
        case _:
            raise error


if __name__ == "__main__":
    sys.exit(main())
