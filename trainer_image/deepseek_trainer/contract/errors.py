"""The errors that reach a person.  Each names the value, the rule and the way out."""

from typing import Final

from deepseek_trainer.contract.foreign import MAX_LINE, one_line
from deepseek_trainer.contract.names import ExitCode

PEER_GONE: Final = "PeerGone"  # reason of a failure by PeerGoneError
STORAGE: Final = "Storage"  # reason of a failure by a full or failing volume
OUT_OF_MEMORY: Final = "OutOfMemory"  # reason of a failure by too little memory, of the host or of a GPU
ADAPTING: Final = "Adapting"  # reason of a failure by AdaptingError


class JobError(Exception):
    """Something outside our code is wrong; `code` says whether a retry can help.

    The message is one line, lower case, no full stop; `hint` is the next command or the nearest
    good value.  Whatever others put into either, it stays one line, printable and bounded.
    """

    code = ExitCode.INTERNAL

    def __init__(self, problem: str, *, hint: str = "") -> None:
        self.problem, self.hint = one_line(problem, MAX_LINE // 2), one_line(hint, MAX_LINE // 2)
        super().__init__(self.problem)

    def __str__(self) -> str:
        return f"{self.problem} (hint: {self.hint})" if self.hint else self.problem


class ConfigError(JobError):
    code = ExitCode.CONFIG


class DataError(JobError):
    """Something is wrong with the data.  `problem` says where; `full` may also say what stands there.

    What stands in the data of a job that seals anything is private, so `in_full` is for the other jobs.
    """

    code = ExitCode.DATA

    def __init__(self, problem: str, *, hint: str = "", full: str = "") -> None:
        super().__init__(problem, hint=hint)
        self._full = full or problem

    def in_full(self) -> "DataError":
        return DataError(self._full, hint=self.hint)


class NotFiniteError(JobError):
    code = ExitCode.NOT_FINITE


class NotImprovedError(JobError):
    """The held-out loss did not fall, and the job asks that it falls."""

    code = ExitCode.NOT_FINITE


class TryAgainError(JobError):
    code = ExitCode.TRY_AGAIN


class PeerGoneError(TryAgainError):
    """Another rank or node went away.  The reason is only known there."""


class OutOfMemoryError(TryAgainError):
    """Memory ran out, and no rung is left that needs less."""


class AdaptingError(TryAgainError):
    """Memory ran out, and the next round of ranks starts with settings that need less."""


class IntegrityError(JobError):
    code = ExitCode.INTEGRITY


class UnreadableError(IntegrityError):
    """The disk does not return what was written to it: a sector is bad, or the whole disk is gone."""
