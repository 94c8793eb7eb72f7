"""Going on after memory ran out: all ranks begin a round on the same rung of the job's ladder."""

from collections.abc import Iterator
from contextlib import contextmanager

from deepseek_trainer.budget.ladder import climbed, describe, ladder
from deepseek_trainer.checkpoints.catalog import CheckpointInfo
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import AdaptingError, OutOfMemoryError, TryAgainError
from deepseek_trainer.contract.optimization import OnOutOfMemory
from deepseek_trainer.worker.distributed import World
from deepseek_trainer.worker.failure import first_line, is_out_of_memory
from deepseek_trainer.worker.scratch import Scratch
from deepseek_trainer.worker.training_config import config_digest


def saved_rungs(requested: TrainingConfig, info: CheckpointInfo | None) -> int:
    """On which rung the checkpoint was made; 0 for other settings, of which the ladder is another one."""
    if info is None or info.meta.get("configDigest") != config_digest(requested):
        return 0
    return int(info.meta.get("rungs", 0))


def agreed_rungs(requested: TrainingConfig, info: CheckpointInfo | None, scratch: Scratch, world: World) -> int:
    """How far all ranks have climbed: as far as one rank had to, or had when the checkpoint was made.  Collective.

    Kept on every node: the one that climbed may be replaced.
    """
    rungs: int = max(saved_rungs(requested, info), *world.gather(scratch.rungs))
    scratch.climb_to(rungs)
    return rungs


@contextmanager
def climbing(requested: TrainingConfig, rungs: int, scratch: Scratch) -> Iterator[None]:
    """Where memory runs out on `rungs`, have the next round begin one higher, and leave for that by AdaptingError.

    Raises OutOfMemoryError on the last rung.  Whatever a job wants that does not adapt goes by as it is.
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
