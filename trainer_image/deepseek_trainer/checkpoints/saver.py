"""Saves beside the training: it waits only until the state is copied, and that only before it changes weights."""

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
from deepseek_trainer.checkpoints.store import CheckpointStore, Share
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.worker.agreement import Exchange


@dataclass(frozen=True, slots=True)
class Saved:
    """A committed checkpoint."""

    info: CheckpointInfo
    seconds: float  # from the call of `save` to the commit
    stall_seconds: float  # of them those in which the caller waited


@dataclass
class HostCopies:
    """Copies of tensors in the host's memory, whose buffers are used again for the next copies."""

    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def of(self, pieces: Sequence[Piece]) -> list[Piece]:
        """`pieces` as they are now.  The copies before these are overwritten."""
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
    """For another thread: on a GPU, a stream behind the work that this one has queued."""
    gpu = _gpu_of(pieces)
    if gpu is None:
        return nullcontext()
    stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(gpu))
    return torch.cuda.stream(stream)


class Saver:
    """At most one save of a rank under way.  `prune`, `save` and `wait` are collective."""

    def __init__(
        self,
        store: CheckpointStore,
        retention: Retention,
        exchange: Exchange | None = None,
        *,
        waits_for_copy: bool = False,
    ) -> None:
        """`exchange`: of a group of its own, for saves beside the training; without it, `save` does all of the work."""
        self.store, self._retention = store, retention
        self._beside = store.beside(exchange) if exchange else None
        self._waits_for_copy = waits_for_copy
        self._copies, self._finished = HostCopies(), list[Saved]()
        self._is_copied, self._stall_s = threading.Event(), 0.0
        self._running: Future[tuple[CheckpointInfo, float]] | None = None  # with the seconds that it took
        self._thread = ThreadPoolExecutor(1, "saver")

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], best_step: int | None) -> None:
        """Begin to commit `state` as `step`, and then to drop what retention gives up.

        `state` must not change until `before_change`, unless this waits for the copy.  Waits for the save before, and
        raises what that raised.
        """
        start = time.monotonic()
        self.wait()
        share = self.store.share(state)
        if self._beside is None:
            info = self.store.commit(step, share, meta)
            self.prune(best_step)
            seconds = time.monotonic() - start
            self._finished.append(Saved(info, seconds, seconds))
            return
        store, queued, meta = self._beside, _after_queued(share.pieces), deepcopy(meta)
        share = Share(share.pieces, deepcopy(share.rest))

        def commit() -> tuple[CheckpointInfo, float]:
            info = store.commit(step, self._copied(share, queued), meta)
            store.prune(self._retention, best_step)
            return info, time.monotonic() - start

        self._is_copied.clear()
        self._running = self._thread.submit(commit)
        if self._waits_for_copy:
            self._is_copied.wait()
        self._stall_s = time.monotonic() - start

    def before_change(self) -> None:
        """Wait until there is a copy of the state that is being saved: from then on it may change."""
        if self._running:
            start = time.monotonic()
            self._is_copied.wait()
            self._stall_s += time.monotonic() - start

    def prune(self, best_step: int | None) -> None:
        """Drop what retention gives up, with a new best."""
        self.wait()
        self.store.prune(self._retention, best_step)

    def wait(self) -> None:
        """Until nothing is under way.  Raises what the save raised, on all ranks."""
        running, self._running = self._running, None
        if running:
            self._finished.append(Saved(*running.result(), self._stall_s))

    @property
    def has_failed(self) -> bool:
        """Whether the save under way has raised on this rank; `wait` tells what, once all ranks call it."""
        return self._running is not None and self._running.done() and self._running.exception() is not None

    def finished(self) -> list[Saved]:
        """What was committed since the last call."""
        if self._running and self._running.done() and not self.has_failed:
            self.wait()
        found, self._finished = self._finished, []
        return found

    def _copied(self, share: Share, queued: AbstractContextManager[object]) -> Share:
        try:
            if gpu := _gpu_of(share.pieces):
                torch.cuda.set_device(gpu)  # each thread begins with the first one
            with queued:
                return Share(self._copies.of(share.pieces), share.rest)
        finally:
            self._is_copied.set()
