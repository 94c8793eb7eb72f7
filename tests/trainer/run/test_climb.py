"""Which rung of its ladder a job is on, and that memory which runs out brings it to the next one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import AdaptingError, OutOfMemoryError
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.run.climb import agreed_rungs, climbing, saved_rungs
from deepseek_trainer.worker.failure import Failure
from deepseek_trainer.worker.scratch import Scratch
from deepseek_trainer.worker.training_config import config_digest
from support.builders.data import a_config

LAST = 7  # rungs of a_job: 4, 2, 1, Selective, Full, smaller parts of the loss, moments in 8 bits


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    found = Scratch(tmp_path / "scratch")
    found.begin_round()
    return found


def a_job(**optimization: Any) -> TrainingConfig:
    return a_config().model_copy(update={"optimization": OptimizationSpec.model_validate(optimization)})


def a_checkpoint(config: TrainingConfig, **meta: Any) -> Any:
    return SimpleNamespace(meta={"configDigest": config_digest(config)} | meta)


def ranks_at(*others: int) -> Any:
    """A world in which the others have climbed so far."""
    return SimpleNamespace(gather=lambda own: [own, *others])


def out_of_memory() -> RuntimeError:
    """The CPU's allocator itself, asked for 4 PiB."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(), out_of_memory()],
    ids=["GPU", "Python", "CPU"],
)
def test_memory_that_runs_out_has_the_next_round_begin_one_rung_higher(scratch: Scratch, error: Exception):
    adapting = r"start again with microBatchSize 2, recompute None, logitsMebibytes 256, strategy DDP, optimizer AdamW$"
    with pytest.raises(AdaptingError, match=adapting), climbing(a_job(), 1, scratch):
        raise error
    assert scratch.rungs == 2


def test_on_the_last_rung_the_job_fails_and_says_what_to_change(scratch: Scratch):
    with pytest.raises(OutOfMemoryError) as raised, climbing(a_job(), LAST, scratch):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
    failure = Failure.of(raised.value, 1)
    assert failure.message.startswith(
        "CUDA out of memory.; even with microBatchSize 1, recompute Full, logitsMebibytes 32, strategy DDP, "
        "optimizer AdamW8bit (hint: lower data.sequenceLength"
    )
    assert (failure.exit_code, failure.reason, failure.ends_worker, scratch.rungs) == (75, "OutOfMemory", True, 0)


def test_a_job_that_does_not_adapt_keeps_what_was_raised(scratch: Scratch):
    error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError) as raised, climbing(a_job(onOutOfMemory="Fail"), 0, scratch):
        raise error
    assert raised.value is error
    assert scratch.rungs == 0


def test_other_errors_climb_nothing(scratch: Scratch):
    with pytest.raises(RuntimeError, match="shapes"), climbing(a_job(), 0, scratch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert scratch.rungs == 0


@pytest.mark.parametrize(
    ("own", "others", "saved", "expected"),
    [(0, (), 0, 0), (0, (2, 1), 0, 2), (3, (1,), 0, 3), (0, (0,), 4, 4), (1, (5,), 4, 5)],
)
def test_all_ranks_begin_where_one_of_them_or_the_checkpoint_stands_and_every_node_keeps_it(
    scratch: Scratch, own: int, others: tuple[int, ...], saved: int, expected: int
):
    scratch.climb_to(own)
    info = a_checkpoint(a_job(), rungs=saved)
    assert agreed_rungs(a_job(), info, scratch, ranks_at(*others)) == expected
    assert scratch.rungs == expected


def test_a_checkpoint_of_other_settings_stands_on_another_ladder():
    job = a_job()
    assert saved_rungs(job, a_checkpoint(job, rungs=2)) == 2
    assert saved_rungs(job, a_checkpoint(a_job(microBatchSize=2), rungs=2)) == 0
    assert saved_rungs(job, a_checkpoint(job)) == 0, "an older trainer has not recorded it"
    assert saved_rungs(job, None) == 0
