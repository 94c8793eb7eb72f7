"""Makes a rank's batches from rows: for a GPU in a thread, ahead of the step that trains on them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from deepseek_trainer.data.batch import Batch
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.dataset import Rows
from deepseek_trainer.data.draws import Draws, Numbers, RowArray
from deepseek_trainer.data.permutation import Indices
from deepseek_trainer.worker.distributed import World

B = TypeVar("B", bound=Batch)
Load = Callable[[Cursor], list[B]]  # a cursor -> this rank's micro-batches of its step, always the same


def loader(rows: Rows[B], world: World, size: int) -> Load[B]:
    """What makes a step's micro-batches of `size` rows.

    For a GPU they are pinned, and a thread makes them while the GPU computes.  On the CPU a thread would gain nothing:
    it would compute in the training's place.
    """
    is_cuda = world.device.type == "cuda"

    def load(cursor: Cursor) -> list[B]:
        positions, indices = cursor.positions(world.rank, world.size), cursor.rank_slice(world.rank, world.size)
        parts = [slice(i, i + size) for i in range(0, len(indices), size)]
        batches = [rows.batch(indices[part], _draws(rows, cursor, positions[part])) for part in parts]
        return [batch.pinned() for batch in batches] if is_cuda else batches

    # Without this, a new thread uses the first GPU.
    return Ahead(load, partial(torch.cuda.set_device, world.device)) if is_cuda else load


def _draws(rows: Rows[Any], cursor: Cursor, positions: Indices) -> Draws:
    def partners() -> tuple[RowArray, Numbers]:
        others = cursor.partners_of(positions)
        return rows.read(cursor.rows_at(others)), cursor.numbers_at(others)

    return Draws(cursor.numbers_at(positions), partners)


class Ahead(Generic[B]):
    """Calls `load` for the next step in a thread, while the current step is trained.

    It keeps no position of its own: if the caller goes elsewhere in the data, what was made ahead is dropped.
    """

    def __init__(self, load: Load[B], first: Callable[[], None] = lambda: None) -> None:
        """The thread calls `first` before all else."""
        self._load, self._thread = load, ThreadPoolExecutor(1, "loader", first)
        self._next: tuple[Cursor, Future[list[B]]] | None = None

    def __call__(self, cursor: Cursor) -> list[B]:
        """What `load` returns or raises for `cursor`."""
        if self._next is None or self._next[0] != cursor:
            self._begin(cursor)
        assert self._next is not None
        batches = self._next[1].result()
        self._begin(cursor.advanced())
        return batches

    def _begin(self, cursor: Cursor) -> None:
        self._next = cursor, self._thread.submit(self._load, cursor)
