"""How the ranks share a model: every rank all of it (DDP), or each a shard (FSDP2).

Either way gradients are the mean over ranks of what the ranks' losses give.
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
from deepseek_trainer.worker.distributed import World


def spread(loss: Loss[Any], optimization: OptimizationSpec, world: World) -> nn.Module:
    """`loss` over all ranks.  FSDP replaces the model's parameters by shards: optimizers come after it."""
    if optimization.strategy is Strategy.DDP:
        return DistributedDataParallel(loss)
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Where the host is the device, nothing is sent that would have to be pinned.
    offload = CPUOffloadPolicy(pin_memory=world.device.type == "cuda") if optimization.offload else OffloadPolicy()
    shard = partial(fully_shard, mesh=mesh, offload_policy=offload)
    for frozen in loss.frozen:
        for module in (*blocks(frozen.model), frozen):
            shard(module, reshard_after_forward=True)
    layers = [shard(layer) for layer in blocks(loss.model)]
    # Weights change between passes, by steps and averages: none may stay gathered.
    root = shard(loss, reshard_after_forward=True)
    # By itself FSDP gathers ahead in the order of all forward passes, of which a rank that answers prompts has its own.
    for module, ahead in zip((*layers, root), (root, *layers), strict=True):
        module.set_modules_to_backward_prefetch([ahead])
    return loss


def sync_gradients(spread: nn.Module, *, now: bool) -> None:
    """Whether DDP's next backward pass brings gradients to all ranks, or only adds to this rank's.

    FSDP's always does: a rank that waited would keep the gradients of all weights until then.
    """
    if isinstance(spread, DistributedDataParallel):
        spread.require_backward_grad_sync = now


@contextmanager
def whole(spread: nn.Module) -> Iterator[None]:
    """Every weight on every rank, so that a rank can use the model alone, once `spread` has run a first time.

    Entering it is collective.
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
