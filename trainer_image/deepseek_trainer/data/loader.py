"""Where a rank's batches come from, and when they are made."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.dataset import Batch, Rows
from deepseek_trainer.worker.distributed import World

Load = Callable[[Cursor], list[Batch]]  # this rank's micro-batches of the step at a cursor; the same for the same one


def loader(rows: Rows, world: World, size: int) -> Load:
    """Batches of `size` rows.  On a GPU pinned, and made while it computes; on the CPU there is nothing to gain.

    There the device is the host: what a thread beside the training does, the training does not.
    """
    is_cuda = world.device.type == "cuda"

    def load(cursor: Cursor) -> list[Batch]:
        indices = cursor.rank_slice(world.rank, world.size)
        batches = [rows.batch(indices[i : i + size]) for i in range(0, len(indices), size)]
        return [batch.pinned() for batch in batches] if is_cuda else batches

    # Each thread begins with the first GPU.
    return Ahead(load, partial(torch.cuda.set_device, world.device)) if is_cuda else load


class Ahead:
    """Has a thread call `load` for the next step while this one is trained.

    It keeps no place in the data: where the caller goes elsewhere, what was made ahead is dropped.
    """

    def __init__(self, load: Load, first: Callable[[], None] = lambda: None) -> None:
        """`first`: what the thread begins with."""
        self._load, self._thread = load, ThreadPoolExecutor(1, "loader", first)
        self._next: tuple[Cursor, Future[list[Batch]]] | None = None

    def __call__(self, cursor: Cursor) -> list[Batch]:
        """What `load` gives or raises for `cursor`."""
        if self._next is None or self._next[0] != cursor:
            self._begin(cursor)
        assert self._next is not None
        batches = self._next[1].result()
        self._begin(cursor.advanced())
        return batches

    def _begin(self, cursor: Cursor) -> None:
        self._next = cursor, self._thread.submit(self._load, cursor)
