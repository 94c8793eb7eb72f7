"""Before a model is loaded: whether this machine can hold what must be held.

Only what is certain counts, and against all of the memory: a job that might just fit, or whose last process is still
leaving the GPU, is never refused for good.
"""

from pathlib import Path

import torch

from deepseek_trainer.budget import cgroup
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.budget.estimate import Setup, memory, shortage
from deepseek_trainer.budget.ladder import describe, ladder
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError


def rungs_to_fit(
    config: TrainingConfig, dimensions: Dimensions | None, device: torch.device, groups: Path = cgroup.ROOT
) -> int:
    """The first rung of the job's ladder, 0: none, on which weights, gradients and moments alone do not exceed the GPU,
    or the container's memory.  Of a model whose dimensions are not known, none.

    Raises ConfigError where there is none.
    """
    if dimensions is None:
        return 0
    is_cuda = device.type == "cuda"
    gpu = torch.cuda.mem_get_info(device)[1] if is_cuda else None
    container, problem, rung = cgroup.memory_limit(groups), None, config
    for rungs, rung in enumerate([config, *ladder(config)]):
        found = memory(dimensions, Setup.of(rung, is_bf16=False, is_cuda=is_cuda))
        problem = shortage(found, config.num_proc_per_node, gpu, container)
        if problem is None:
            return rungs
    raise ConfigError(
        f"{problem}, even with {describe(rung)}",
        hint="several processes and optimization.strategy: FSDP, method.type: LoRA or QLoRA, a smaller model, or more "
        "memory",
    )
