"""How text leaves a process: each message is one line, printable and bounded, whatever others put into it."""

import logging
import re
from typing import Any, TextIO

from deepseek_trainer.contract.foreign import one_line

_OURS = ("deepseek_", "dstj")
# Libraries tell people what to install, who run a job with an image that is complete.
_ADVICE = re.compile(
    r"\b(?:pip3?|conda|mamba|uv)\b[^.\n]*\binstall\b|\bto install\b|\b(?:not installed|installation not found)\b"
    r"|\b(?:please|consider|try)\b[^.\n]*\binstall(?:ing)?\b",
    re.IGNORECASE,
)
_LOOKED_AT = 4096  # [characters] of a message
_UNHEARD = -1  # a level below that of every handler


def say(text: str = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line, on stdout unless a `file` is given."""
    print(one_line(text), file=file, flush=flush)


def guard_logs() -> None:
    """Let each message that this process or a library of it logs from now on be one line, with warnings of Python.

    What a library advises to install is not heard.
    """
    logging.setLogRecordFactory(_Record)
    logging.captureWarnings(True)


class _Record(logging.LogRecord):
    def __init__(
        self, name: str, level: int, pathname: str, lineno: int, msg: object, *more: Any, **named: Any
    ) -> None:
        super().__init__(name, level, pathname, lineno, msg, *more, **named)
        is_foreign = level < logging.ERROR and not name.startswith(_OURS)
        if is_foreign and isinstance(msg, str) and _ADVICE.search(msg[:_LOOKED_AT]):
            self.levelno = _UNHEARD

    def getMessage(self) -> str:  # noqa: N802  the name is logging's
        return one_line(super().getMessage())
