"""Saves beside the training: the loop waits only until the state is copied, sealing and writing happen meanwhile."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deepseek_trainer.agreement import Exchange
from deepseek_trainer.catalog import CheckpointInfo
from deepseek_trainer.checkpoint import CheckpointStore, Share
from deepseek_trainer.contract.retention import Retention


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

    def of(self, share: Share) -> Share:
        """`share` as it is now.  The copies before this one are overwritten."""
        pieces = [replace(piece, tensor=self._copied(piece.info.key, piece.tensor)) for piece in share.pieces]
        if any(piece.tensor.is_cuda for piece in share.pieces):
            torch.cuda.current_stream().synchronize()
        return Share(pieces, deepcopy(share.rest))

    def _copied(self, key: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(tensor, non_blocking=True)


class Saver:
    """At most one save of a rank under way.  All methods but `has_failed` and `finished` are collective."""

    def __init__(self, store: CheckpointStore, retention: Retention, exchange: Exchange | None = None) -> None:
        """`exchange`: of a group of its own, for saves beside the training; without it, `save` does all of the work."""
        self.store, self._retention = store, retention
        self._beside = store.beside(exchange) if exchange else None
        self._copies, self._finished = HostCopies(), list[Saved]()
        self._running: Future[Saved] | None = None
        self._thread = ThreadPoolExecutor(1, "saver")

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], best_step: int | None) -> None:
        """Begin to commit `state` as `step`, and then to drop what retention gives up.

        Waits for the save before, and raises what that raised.
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
        store, copied, meta = self._beside, self._copies.of(share), deepcopy(meta)
        stall = time.monotonic() - start

        def commit() -> Saved:
            info = store.commit(step, copied, meta)
            store.prune(self._retention, best_step)
            return Saved(info, time.monotonic() - start, stall)

        self._running = self._thread.submit(commit)

    def prune(self, best_step: int | None) -> None:
        """Drop what retention gives up, with a new best."""
        self.wait()
        self.store.prune(self._retention, best_step)

    def wait(self) -> None:
        """Until nothing is under way.  Raises what the save raised, on all ranks."""
        running, self._running = self._running, None
        if running:
            self._finished.append(running.result())

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
