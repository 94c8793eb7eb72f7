"""How text leaves a process: each message is one line, printable and bounded, whatever others put into it."""

import logging
from typing import TextIO

from deepseek_trainer.contract.foreign import one_line


def say(text: str = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line, on stdout unless a `file` is given."""
    print(one_line(text), file=file, flush=flush)


def guard_logs() -> None:
    """Let each message that this process or a library of it logs from now on be one line, with warnings of Python."""
    logging.setLogRecordFactory(_Record)
    logging.captureWarnings(True)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802  the name is logging's
        return one_line(super().getMessage())
