"""Compiles modules, if the machine can."""

import os
import shutil
from typing import Any

import torch
from torch import nn

from deepseek_trainer.contract.errors import ConfigError


def compiled(module: nn.Module) -> Any:
    """`module`, compiled.  Raises ConfigError if there is no C++ compiler, which torch.compile needs on any device."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"optimization.compile: there is no {compiler} in the trainer's image",
            hint="drop optimization.compile, or build an image with a C++ compiler",
        )
    return torch.compile(module, dynamic=False)
