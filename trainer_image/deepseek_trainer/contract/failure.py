"""The failure of a worker as JSON: its launcher writes it to the termination log, the operator reads it from the pod.

Not a pydantic model, unlike most of this package.  The launcher imports it before it listens for signals, and a
SIGTERM that comes earlier is lost: pydantic would make that time several times as long.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.foreign import count, json_object, legible
from deepseek_trainer.contract.names import ExitCode

MAX_BYTES: Final = 4096  # of a termination message; the kubelet would cut JSON anywhere


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank, or the worker as a whole (rank None), ended."""

    exit_code: int
    reason: str
    message: str
    rank: int | None = None

    @classmethod
    def read(cls, text: str) -> Self:
        """The failure that `text` tells of.  What is no JSON object is taken for its message."""
        fields = json_object(text)
        if fields is None:
            return cls(ExitCode.INTERNAL, "", legible(text))
        code, reason, message = count(fields.get("exitCode")), fields.get("reason", ""), fields.get("message", "")
        return cls(
            ExitCode.INTERNAL if code is None else code, legible(reason), legible(message), count(fields.get("rank"))
        )

    def to_json(self, progress: Mapping[str, Any] | None = None) -> bytes:
        """The failure, with the last progress beside it: at most MAX_BYTES, and whole."""
        message = self.message
        while (excess := len(encoded := self._encoded(message, progress)) - MAX_BYTES) > 0 and message:
            message = message[: -(1 + excess // 6)]  # a character is at most 6 bytes of JSON
        return encoded

    def _encoded(self, message: str, progress: Mapping[str, Any] | None) -> bytes:
        own = {"rank": self.rank, "exitCode": int(self.exit_code), "reason": self.reason, "message": message}
        fields = {**(progress or {}), **own}
        known = {key: value for key, value in fields.items() if value is not None}
        return json_text(known, ensure_ascii=False).encode(errors="replace")
