"""What each of several ranks does in test_experts.py; here, because its processes must be able to import it."""

import os
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deepseek_trainer.contract.method import LoraSpec, MethodSpec
from deepseek_trainer.contract.model import ArchitectureFamily
from deepseek_trainer.model.loading import scratch_model
from deepseek_trainer.model.method import trainable
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.worker.distributed import World
from support.builders.loop import ALONE, LENGTH, TINY, a_loop, config, run_until_stopped

EXPERTS: Final = TINY.model_copy(update={"family": ArchitectureFamily.DEEPSEEK_V3, "num_layers": 2, "num_experts": 4})
SHARED: Final = TINY.model_copy(update={"family": ArchitectureFamily.ALBERT, "num_layers": 3})
ADAPTED: Final = ("kv_b_proj", "o_proj", "experts.gate_up_proj", "experts.down_proj")
STEPS: Final = 6


def model_of(name: str) -> nn.Module:
    """Of a name in test_experts.py."""
    model = scratch_model(SHARED if name == "shared layers" else EXPERTS, LENGTH, seed=0)
    if name != "adapters":
        return model
    lora = LoraSpec(rank=2, dropout=0, target_modules=ADAPTED)
    return trainable(model, MethodSpec(type="LoRA", lora=lora), 0, ALONE.device, torch.float32)


def story(world: World, root: Path, name: str, first: dict[str, Any], second: dict[str, Any] | None) -> dict[str, Any]:
    """A run under `first`; where `second` is given, stopped after two steps and gone on under it."""
    os.environ["LOCAL_RANK"] = str(world.rank)  # as torchrun does
    losses: list[float | None] = []
    if second is not None:
        loop = a_loop(settings(name, first), root, world=world, stop_after=2, model=model_of(name))
        run_until_stopped(loop)
        losses = loop.reporter.losses
    again = a_loop(settings(name, second or first), root, world=world, model=model_of(name))
    again.run()
    figures = [dict(result.figures) for result in again.reporter.results[-1:]]
    return {"losses": losses + again.reporter.losses, "figures": figures, "weights": kept(again)}


def settings(name: str, changes: dict[str, Any]) -> Any:
    """Adapters have no dropout of the job's."""
    dropout = {"dropout": 0.0} if name == "adapters" else {}
    return config(**{"evaluation": {"intervalSteps": 2}, "microBatchSize": 1} | dropout | changes)


def kept(loop: Loop) -> dict[str, list[float]]:
    """What a rank alone would export: all weights and biases."""
    with loop.learner.finished() as model:
        tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: tensor.detach().flatten().tolist() for name, tensor in tensors.items()}
