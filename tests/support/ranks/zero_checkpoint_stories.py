"""What each of several ranks does in test_zero.py; here, because its processes must be able to import it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn

from deepseek_trainer.checkpoints.deepspeed import SealedEngine
from deepseek_trainer.worker.distributed import World
from support.ranks.gloo import store_of

BATCH = 4
STEPS = 3


def join(world: World) -> None:
    """Have DeepSpeed use the process group that is there, without a compiler."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is built at once, in a minute
    os.environ["LOCAL_RANK"] = str(world.rank)
    deepspeed.init_distributed("gloo")


def an_engine(world: World, stage: int) -> DeepSpeedEngine:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    config = {
        "train_micro_batch_size_per_gpu": BATCH,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.05, "torch_adam": True}},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, config=config, dist_init_required=False)
    return engine


def train(engine: DeepSpeedEngine, world: World, first: int) -> list[float]:
    """The loss of STEPS steps from step `first` on."""
    losses = []
    for step in range(first, first + STEPS):
        x = torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(100 * step + world.rank))
        loss = engine(x).pow(2).mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def go_on_in(world: World, root: Path, stages: list[int]) -> list[tuple[list[float], list[float]]]:
    join(world)
    return [go_on(world, root / str(stage), stage) for stage in stages]


def go_on(world: World, root: Path, stage: int) -> tuple[list[float], list[float]]:
    """Losses after a checkpoint: of the engine that wrote it, and of a new one that read it."""
    engine = an_engine(world, stage)
    train(engine, world, 0)
    SealedEngine(store_of(world, root), world).save_checkpoint(engine, STEPS, {"by": "test"})
    expected = train(engine, world, STEPS)
    engine.destroy()
    again = an_engine(world, stage)
    meta = load(world, root, again)
    assert (meta["by"], again.global_steps) == ("test", STEPS)
    return expected, train(again, world, STEPS)


def load(world: World, root: Path, engine: DeepSpeedEngine) -> Mapping[str, Any]:
    store = store_of(world, root)
    info = store.latest()
    assert info is not None
    return SealedEngine(store, world).load_checkpoint(engine, info)


def load_anew(world: World, root: Path, stage: int) -> None:
    join(world)
    load(world, root, an_engine(world, stage))
