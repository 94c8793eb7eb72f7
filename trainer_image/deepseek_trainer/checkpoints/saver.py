"""Saves checkpoints while the training goes on.

The training waits only until its state has been copied, and only when it is about to change the weights.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deepseek_trainer.checkpoints.catalog import CheckpointInfo
from deepseek_trainer.checkpoints.dcp import Piece
from deepseek_trainer.checkpoints.pace import Pace
from deepseek_trainer.checkpoints.store import CheckpointStore, Part
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.worker.agreement import Exchange


@dataclass(frozen=True, slots=True)
class Saved:
    """A committed checkpoint."""

    info: CheckpointInfo
    seconds: float  # from the call of `save` to the commit
    stall_seconds: float  # of these, the seconds in which the caller waited


@dataclass
class HostCopies:
    """Copies of tensors in the host's memory.  Their buffers are used again for the next copies."""

    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def of(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Copies of `pieces` as they are now.  They overwrite the copies before."""
        copies = [replace(piece, tensor=self._copied(piece.info.key, piece.tensor)) for piece in pieces]
        if _gpu_of(pieces):
            torch.cuda.current_stream().synchronize()
        return copies

    def _copied(self, key: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(tensor, non_blocking=True)


def _gpu_of(pieces: Sequence[Piece]) -> torch.device | None:
    return next((piece.tensor.device for piece in pieces if piece.tensor.is_cuda), None)


def _after_queued(pieces: Sequence[Piece]) -> AbstractContextManager[object]:
    """A stream for another thread, which follows the work that this thread has queued on the GPU."""
    gpu = _gpu_of(pieces)
    if gpu is None:
        return nullcontext()
    stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(gpu))
    return torch.cuda.stream(stream)


class Saver:
    """Runs at most one save of a rank at a time.  `prune`, `save` and `wait` are collective."""

    def __init__(
        self,
        store: CheckpointStore,
        retention: Retention,
        exchange: Exchange | None = None,
        *,
        waits_for_copy: bool = False,
    ) -> None:
        """With an `exchange` over a group of its own, saves run in a thread.  Without it, `save` does all the work."""
        self.store, self._retention = store, retention
        self._beside = store.beside(exchange) if exchange else None
        self._waits_for_copy, self._pace = waits_for_copy, Pace()
        self._copies, self._finished = HostCopies(), list[Saved]()
        self._is_copied, self._stall_s = threading.Event(), 0.0
        self._running: Future[tuple[CheckpointInfo, float]] | None = None  # with the seconds that it took
        self._thread = ThreadPoolExecutor(1, "saver")

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], best_step: int | None) -> None:
        """Begin to commit `state` as `step`, and then to delete what retention gives up.

        The caller must not change `state` before it has called `before_change`, unless this saver waits for the copy.
        Waits for the save before this one, and raises what that raised.
        """
        start = time.monotonic()
        self.wait()
        part = self.store.part_of(state)
        if self._beside is None:
            info = self.store.commit(step, part, meta)
            self.prune(best_step)
            seconds = time.monotonic() - start
            self._finished.append(Saved(info, seconds, seconds))
            return
        store, queued, meta = self._beside, _after_queued(part.pieces), deepcopy(meta)
        part = Part(part.pieces, deepcopy(part.rest))
        pace = self._pace if _gpu_of(part.pieces) is None else None  # a GPU leaves the processor to the save

        def commit() -> tuple[CheckpointInfo, float]:
            info = store.commit(step, self._copied(part, queued), meta, pace)
            store.prune(self._retention, best_step)
            return info, time.monotonic() - start

        self._is_copied.clear()
        self._pace.begin()
        self._running = self._thread.submit(commit)
        if self._waits_for_copy:
            self._is_copied.wait()
        self._stall_s = time.monotonic() - start

    def before_change(self) -> None:
        """Wait until the state that is being saved has been copied.  After that it may change."""
        if self._running:
            start = time.monotonic()
            self._is_copied.wait()
            self._stall_s += time.monotonic() - start

    def prune(self, best_step: int | None) -> None:
        """Delete what retention gives up, given the step of the best checkpoint."""
        self.wait()
        self.store.prune(self._retention, best_step)

    def wait(self) -> None:
        """Wait until no save is under way.  Raises what the save raised, on all ranks."""
        running, self._running = self._running, None
        if running:
            self._pace.hurry()
            self._finished.append(Saved(*running.result(), self._stall_s))

    @property
    def has_failed(self) -> bool:
        """Whether the save under way has failed on this rank.  `wait` raises the error once all ranks call it."""
        return self._running is not None and self._running.done() and self._running.exception() is not None

    def finished(self) -> list[Saved]:
        """The checkpoints that were committed since the last call."""
        if self._running and self._running.done() and not self.has_failed:
            self.wait()
        found, self._finished = self._finished, []
        return found

    def _copied(self, part: Part, queued: AbstractContextManager[object]) -> Part:
        try:
            if gpu := _gpu_of(part.pieces):
                torch.cuda.set_device(gpu)  # a new thread starts with the first GPU
            with queued:
                return Part(self._copies.of(part.pieces), part.rest)
        finally:
            self._is_copied.set()
