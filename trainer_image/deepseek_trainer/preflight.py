"""Before a model is loaded: whether this machine can hold what must be held.

Only what is certain counts, and against all of the memory: a job that might just fit, or whose last process is still
leaving the GPU, is never refused for good.
"""

from pathlib import Path

import torch

from deepseek_trainer import cgroup
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.dimensions import Dimensions
from deepseek_trainer.estimate import Setup, memory, refuse_certain


def refuse_too_large(
    config: TrainingConfig, dimensions: Dimensions, device: torch.device, groups: Path = cgroup.ROOT
) -> None:
    """Raises ConfigError where weights, gradients and moments alone exceed the GPU, or the container's memory."""
    is_cuda = device.type == "cuda"
    found = memory(dimensions, Setup.of(config, is_bf16=False, is_cuda=is_cuda))
    if is_cuda:
        _, total = torch.cuda.mem_get_info(device)
        refuse_certain(found, total, 1, "the GPU")
    elif (limit := cgroup.memory_limit(groups)) is not None:
        refuse_certain(found, limit, config.num_proc_per_node, "the container")
