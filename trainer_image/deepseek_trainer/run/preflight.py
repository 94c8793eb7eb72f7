"""Checks, before a model is loaded, whether this machine has the memory that it needs.

Only what is certainly needed counts, and all of the memory counts as free.  So a job is never refused for good if it
might just fit, or if its last process is still leaving the GPU.
"""

from pathlib import Path

import torch

from deepseek_trainer.budget import cgroup
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.budget.estimate import Setup, memory, shortage
from deepseek_trainer.budget.ladder import describe, ladder
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.model.precision import compute_dtype


def rungs_to_fit(
    config: TrainingConfig, dimensions: Dimensions | None, device: torch.device, groups: Path = cgroup.ROOT
) -> int:
    """The first rung of the job's ladder on which weights, gradients and moments fit into the GPU and the container.

    0 is the job as it is, also for a model whose dimensions are not known.  Raises ConfigError if no rung is enough.
    """
    if dimensions is None:
        return 0
    is_cuda = device.type == "cuda"
    gpu = torch.cuda.mem_get_info(device)[1] if is_cuda else None
    container, problem, rung = cgroup.memory_limit(groups), None, config
    for rungs, rung in enumerate([config, *ladder(config)]):
        is_bf16 = compute_dtype(rung.optimization.precision, device) is not torch.float32
        found = memory(dimensions, Setup.of(rung, is_bf16=is_bf16, is_cuda=is_cuda))
        problem = shortage(found, config.num_proc_per_node, gpu, container)
        if problem is None:
            return rungs
    raise ConfigError(
        f"{problem}, even with {describe(rung)}",
        hint="several processes and optimization.strategy: FSDP, method.type: LoRA or QLoRA, a smaller model, or more "
        "memory",
    )
