"""One rank of a training run: `python -m deepseek_trainer.train`, started by the torchrun agent."""

import os
import sys
import warnings
from typing import NoReturn

from deepseek_trainer.contract.lines import guard_logs
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.worker.failure import Failure, tell
from deepseek_trainer.worker.process import ProfileFlag, StopFlag, StopRequested, die_with_parent, forbid_core_dumps
from deepseek_trainer.worker.scratch import Scratch


def main() -> None:
    die_with_parent()
    forbid_core_dumps()
    stop, profile = StopFlag.on_signal(), ProfileFlag.on_signal()
    paths, rank = Paths.from_env(), int(os.environ["RANK"])
    scratch = Scratch(paths.scratch)
    # From here on the launcher may pass signals on: the handlers are in place.
    restarts = scratch.record(int(os.environ["LOCAL_RANK"]))
    guard_logs()
    _quieten()
    try:
        from deepseek_trainer.run.run import run  # noqa: PLC0415 seconds of import, after the handler

        run(paths, stop, profile, restarts)
    except StopRequested:
        pass
    except Exception as error:  # the edge: nothing may leave without a word
        _leave(Failure.of(error, rank), scratch)
    _end(0)


def _leave(failure: Failure, scratch: Scratch) -> None:
    """At once: a NCCL or gloo thread may be stuck in a collective with a dead peer.

    Its peers hear of it when the kernel closes its connections: this word comes before theirs.
    """
    try:
        failure.save(scratch.failure)
        tell(failure, f"rank {failure.rank}: ")
    finally:
        _end(failure.exit_code)


def _end(code: int) -> NoReturn:
    """Without the interpreter's teardown, in which a thread of a library that still runs can abort the process."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _quieten() -> None:
    """Progress bars and notices of libraries are for people at a terminal, not for a job's log."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


if __name__ == "__main__":
    main()
