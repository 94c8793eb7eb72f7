"""Real ranks for tests: processes that gloo joins, forked from a server that has torch loaded already."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.worker.distributed import World
from support.builders.vault import a_store

_PATIENCE = timedelta(seconds=20)  # a rank that waits longer for its peers fails instead of hanging
os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks when it is imported, which is after this
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["deepseek_trainer.run.run"])  # whatever a rank may need, loaded once for all


def on_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(world, *arguments)` gave on each rank, or the exception that it raised.

    `work` and its results travel between processes: it is a function of a module of tests/.
    """
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(size, mp_context=SERVER) as pool:
        store = Path(place) / "store"
        return list(pool.map(partial(_on_rank, size, store, work, arguments), range(size)))


def store_of(world: World, root: Path) -> CheckpointStore:
    """The store at `root` as a rank of `world` uses it."""
    return a_store(root, rank=world.rank, world_size=world.size, exchange=world.gather)


def _on_rank(size: int, store: Path, work: Callable[..., Any], arguments: tuple[Any, ...], rank: int) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        return work(World(rank, size, torch.device("cpu")), *arguments)
    except Exception as error:
        return error
    finally:
        dist.destroy_process_group()
