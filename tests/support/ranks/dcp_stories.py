"""What each of several ranks does in test_dcp.py; here, because its processes must be able to import it."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from deepseek_trainer.checkpoints.dcp import VaultReader, load_planner, save_planner
from deepseek_trainer.checkpoints.dcp_writer import StoreWriter
from deepseek_trainer.checkpoints.statefile import split
from deepseek_trainer.worker.distributed import World
from support.builders.loop import an_adapted_model
from support.ranks.gloo import store_of


def a_model(*, seed: int = 0) -> nn.Module:
    """Sizes that neither 2 nor 3 ranks divide."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1))


def trained(model: nn.Module, world: World, *, sharded: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """After one step of AdamW, the same on any number of ranks."""
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (world.size,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    named = dict(model.named_parameters())
    moments = {name: dict(optimizer.state[parameter]) for name, parameter in named.items()}
    return {"model": {name: parameter.detach() for name, parameter in named.items()}, "optimizer": moments}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save_sharded(world: World, root: Path) -> None:
    model, optimizer = trained(a_model(), world, sharded=True)
    rng = {"rng": {"cpu": torch.full((2,), world.rank, dtype=torch.uint8)}}
    store_of(world, root).save(7, state_of(model, optimizer) | rng, {})


def load_sharded(world: World, root: Path, sharded: bool) -> tuple[bool, list[str]]:
    """Whether what was loaded, into shards or whole, is what one rank alone trains; and this rank's own entries."""
    expected, _ = split(state_of(*trained(a_model(), world, sharded=False)))
    into: dict[str, Tensor] = {}
    if sharded:
        into, _ = split(state_of(*trained(a_model(seed=1), world, sharded=True)))
    store = store_of(world, root)
    info = store.latest()
    assert info is not None
    found, _ = split(store.load(info, into)[0])
    same = all(torch.equal(whole(found[name]), tensor) for name, tensor in expected.items())
    in_place = all(found[name] is tensor for name, tensor in into.items())
    return same and in_place, sorted(found.keys() - expected.keys())


def save_replicated(world: World, root: Path) -> tuple[list[str], int]:
    """Names of the tensors in this rank's file, of a LoRA model that all ranks hold alike, and of all in all files."""
    named = dict(an_adapted_model().named_parameters())
    state = {"model": {name: parameter.detach() for name, parameter in named.items() if parameter.requires_grad}}
    info = store_of(world, root).save(1, state, {})
    mine = f"rank-{world.rank:05d}.safetensors"
    return [tensor.name for tensor in info.manifest.tensors if tensor.file == mine], len(state["model"])


def through_torch(world: World, root: Path) -> bool:
    """torch's own save and load, on shards."""
    store = store_of(world, root)
    state, _ = split(state_of(*trained(a_model(), world, sharded=True)))
    expected = {name: whole(tensor).clone() for name, tensor in state.items()}
    dcp.save(state, storage_writer=StoreWriter(store, step=3), planner=save_planner())
    for tensor in state.values():
        tensor.zero_()
    info = store.latest()
    assert info is not None
    planner = load_planner()
    dcp.load(state, storage_reader=VaultReader(info, store.vault), planner=planner)
    return all(torch.equal(whole(tensor), expected[name]) for name, tensor in state.items())
