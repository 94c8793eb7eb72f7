"""What the machine cannot hold is refused before it is loaded, or begins on the rung on which it can."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek_trainer.base_model.families import scratch_dimensions
from deepseek_trainer.budget.cgroup import memory_limit
from deepseek_trainer.budget.ladder import climbed
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.optimization import Optimizer, Strategy
from deepseek_trainer.run.preflight import rungs_to_fit
from support.builders.loop import TINY, config

CPU = torch.device("cpu")
CERTAIN = 16 * scratch_dimensions(TINY).parameters  # [bytes]: weights, gradients, two moments


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "1073741824\n", 1 << 30),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "4096\n", 4096),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("other", "1", None),
    ],
)
def test_limit_is_what_the_kernel_says(tmp_path, file, text, limit):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert memory_limit(tmp_path) == limit


def a_job(nodes: int = 1, processes: int = 1, **optimization: Any) -> TrainingConfig:
    return config(**optimization).model_copy(update={"num_nodes": nodes, "num_proc_per_node": processes})


@pytest.fixture
def rungs(tmp_path: Path) -> Callable[..., int]:
    """Rungs that a job climbs in a container with so many bytes."""

    def found(job: TrainingConfig, limit: int, device: torch.device = CPU) -> int:
        (tmp_path / "memory.max").write_text(str(limit))
        return rungs_to_fit(job, scratch_dimensions(TINY), device, tmp_path)

    return found


def test_model_that_its_container_cannot_hold_is_refused(rungs):
    refusal = r"take 0.0 GiB, the container has 0.0 GiB, even with microBatchSize 8, .* optimizer AdamW \(hint: several"
    with pytest.raises(ConfigError, match=refusal):
        rungs(a_job(onOutOfMemory="Fail"), CERTAIN - 1)


def test_model_that_just_fits_is_not_refused(rungs):
    assert rungs(a_job(), CERTAIN) == 0


def test_all_processes_of_a_container_share_its_memory(rungs):
    assert rungs(a_job(processes=2), 2 * CERTAIN) == 0
    with pytest.raises(ConfigError, match=r"even with microBatchSize 1, .* strategy FSDP, offload True"):
        rungs(a_job(processes=2), CERTAIN - 1)


def test_container_without_a_limit_refuses_nothing(tmp_path):
    assert rungs_to_fit(config(), scratch_dimensions(TINY), CPU, tmp_path) == 0


def test_a_job_that_shards_alone_can_hold_begins_with_them(rungs):
    job = a_job(nodes=2)
    found = rungs(job, CERTAIN - 1)
    assert climbed(job, found).optimization.strategy is Strategy.FSDP
    assert climbed(job, found - 1).optimization.strategy is Strategy.DDP
    with pytest.raises(ConfigError):
        rungs(a_job(nodes=2, onOutOfMemory="Fail"), CERTAIN - 1)


def test_a_rank_that_cannot_shard_begins_with_moments_in_8_bits(rungs):
    job = a_job()
    assert climbed(job, rungs(job, CERTAIN - 1)).optimization.optimizer is Optimizer.ADAMW_8BIT
    with pytest.raises(ConfigError, match="optimizer AdamW8bit"):
        rungs(job, CERTAIN // 2)


def test_a_gpu_that_cannot_hold_the_shards_is_helped_by_a_host_that_can(rungs, monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (0, CERTAIN // 4))
    job, gpu = a_job(nodes=2), torch.device("cuda")
    assert climbed(job, rungs(job, CERTAIN // 2, gpu)).optimization.offload
    with pytest.raises(ConfigError, match="the container has"):
        rungs(job, CERTAIN // 2 - 1, gpu)
