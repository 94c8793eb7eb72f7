"""How the ranks share a model: every rank all of it (DDP), or each a shard (FSDP2).

Either way, gradients are the mean of the gradients of the ranks' losses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from deepseek_trainer.contract.optimization import OptimizationSpec, Strategy
from deepseek_trainer.model.blocks import blocks
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.model.shared import are_shared
from deepseek_trainer.worker.distributed import World


def spread(loss: Loss[Any], optimization: OptimizationSpec, world: World) -> nn.Module:
    """Spread `loss` over all ranks.  FSDP replaces the model's parameters by shards, so make optimizers afterwards."""
    if optimization.strategy is Strategy.DDP:
        return DistributedDataParallel(loss)
    mesh = init_device_mesh(world.device.type, (world.size,))
    # On the CPU nothing is copied to a device, so nothing has to be pinned.
    offload = CPUOffloadPolicy(pin_memory=world.device.type == "cuda") if optimization.offload else OffloadPolicy()
    shard = partial(fully_shard, mesh=mesh, offload_policy=offload)
    for frozen in loss.frozen:
        for module in (*blocks(frozen.model), frozen):
            shard(module, reshard_after_forward=True)
    layers = [] if are_shared(blocks(loss.model)) else [shard(layer) for layer in blocks(loss.model)]
    # Weights change between passes, by steps and averages: none may stay gathered.
    root = shard(loss, reshard_after_forward=True)
    # By itself FSDP gathers ahead in the order of all forward passes, of which a rank that answers prompts has its own.
    for module, ahead in zip((*layers, root), (root, *layers), strict=True):
        module.set_modules_to_backward_prefetch([ahead])
    return loss


def sync_gradients(spread: nn.Module, *, now: bool) -> None:
    """Choose whether DDP's next backward pass exchanges gradients with all ranks, or only adds to this rank's.

    FSDP's always exchanges them: otherwise a rank would keep the gradients of all weights until the last pass.
    """
    if isinstance(spread, DistributedDataParallel):
        spread.require_backward_grad_sync = now


@contextmanager
def whole(spread: nn.Module) -> Iterator[None]:
    """Inside of it, every rank has every weight, so that it can use the model alone.

    Entering it is collective, and `spread` must have run once before.
    """
    sharded = [module for module in spread.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()
