"""Goes on after memory ran out: all ranks begin a round on the same rung of the job's ladder."""

from collections.abc import Iterator
from contextlib import contextmanager

from deepseek_trainer.budget.ladder import climbed, describe, ladder
from deepseek_trainer.checkpoints.catalog import CheckpointInfo
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import AdaptingError, OutOfMemoryError, TryAgainError
from deepseek_trainer.contract.foreign import first_line
from deepseek_trainer.contract.optimization import OnOutOfMemory
from deepseek_trainer.worker.distributed import World
from deepseek_trainer.worker.failure import is_out_of_memory
from deepseek_trainer.worker.scratch import Scratch
from deepseek_trainer.worker.training_config import config_digest


def saved_rungs(requested: TrainingConfig, info: CheckpointInfo | None) -> int:
    """The rung on which the checkpoint was made; 0 if its settings were others, which have another ladder."""
    if info is None or info.meta.get("configDigest") != config_digest(requested):
        return 0
    return int(info.meta.get("rungs", 0))


def agreed_rungs(requested: TrainingConfig, info: CheckpointInfo | None, scratch: Scratch, world: World) -> int:
    """The rung for all ranks: the highest that a rank had to climb to, or that the checkpoint was made on.  Collective.

    Every node keeps it, because the node that had to climb may be replaced.
    """
    rungs: int = max(saved_rungs(requested, info), *world.gather(scratch.rungs))
    scratch.climb_to(rungs)
    return rungs


@contextmanager
def climbing(requested: TrainingConfig, rungs: int, scratch: Scratch) -> Iterator[None]:
    """If memory runs out on `rungs`, let the next round begin one rung higher: raise AdaptingError.

    Raises OutOfMemoryError on the last rung.  For a job with onOutOfMemory Fail, the error passes as it is.
    """
    try:
        yield
    except Exception as error:
        if requested.optimization.on_out_of_memory is OnOutOfMemory.FAIL or not is_out_of_memory(error):
            raise
        raise _next(requested, rungs, scratch, first_line(error) or "out of memory") from error


def _next(requested: TrainingConfig, rungs: int, scratch: Scratch, problem: str) -> TryAgainError:
    if lighter := next(ladder(climbed(requested, rungs)), None):
        scratch.climb_to(rungs + 1)
        return AdaptingError(f"{problem}; the ranks start again with {describe(lighter)}")
    return OutOfMemoryError(
        f"{problem}; even with {describe(climbed(requested, rungs))}",
        hint="lower data.sequenceLength, take method.type LoRA or QLoRA or a smaller model, or ask for more memory",
    )
