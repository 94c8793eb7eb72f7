"""Where a rank's batches come from, and when they are made."""

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
Load = Callable[[Cursor], list[B]]  # this rank's micro-batches of the step at a cursor; the same for the same one


def loader(rows: Rows[B], world: World, size: int) -> Load[B]:
    """Batches of `size` rows.  On a GPU pinned, and made while it computes; on the CPU there is nothing to gain.

    There the device is the host: what a thread beside the training does, the training does not.
    """
    is_cuda = world.device.type == "cuda"

    def load(cursor: Cursor) -> list[B]:
        positions = cursor.positions(world.rank, world.size)
        parts = [positions[i : i + size] for i in range(0, len(positions), size)]
        batches = [rows.batch(cursor.rows_at(part), _draws(rows, cursor, part)) for part in parts]
        return [batch.pinned() for batch in batches] if is_cuda else batches

    # Each thread begins with the first GPU.
    return Ahead(load, partial(torch.cuda.set_device, world.device)) if is_cuda else load


def _draws(rows: Rows[Any], cursor: Cursor, positions: Indices) -> Draws:
    def partners() -> tuple[RowArray, Numbers]:
        others = cursor.partners_of(positions)
        return rows.read(cursor.rows_at(others)), cursor.numbers_at(others)

    return Draws(cursor.numbers_at(positions), partners)


class Ahead(Generic[B]):
    """Has a thread call `load` for the next step while this one is trained.

    It keeps no place in the data: where the caller goes elsewhere, what was made ahead is dropped.
    """

    def __init__(self, load: Load[B], first: Callable[[], None] = lambda: None) -> None:
        """`first`: what the thread begins with."""
        self._load, self._thread = load, ThreadPoolExecutor(1, "loader", first)
        self._next: tuple[Cursor, Future[list[B]]] | None = None

    def __call__(self, cursor: Cursor) -> list[B]:
        """What `load` gives or raises for `cursor`."""
        if self._next is None or self._next[0] != cursor:
            self._begin(cursor)
        assert self._next is not None
        batches = self._next[1].result()
        self._begin(cursor.advanced())
        return batches

    def _begin(self, cursor: Cursor) -> None:
        self._next = cursor, self._thread.submit(self._load, cursor)
