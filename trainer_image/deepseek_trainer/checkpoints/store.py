"""Writes and reads the checkpoints of a run.  A checkpoint's directory appears whole, or not at all.

To save, every rank writes and syncs its files in `step-N.partial-<attempt>-<uuid>`.  Rank 0 then writes the manifest,
renames the directory to `step-N` and records it in HEAD.json.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from torch import Tensor

from deepseek_trainer.checkpoints.catalog import (
    CheckpointInfo,
    Refused,
    find,
    open_checkpoint,
    read_head,
    read_rest,
    step_directory,
)
from deepseek_trainer.checkpoints.dcp import PER_RANK, Piece, pieces_to_write, read_tensors
from deepseek_trainer.checkpoints.ledger import Ledger
from deepseek_trainer.checkpoints.manifest import Manifest, RankFile, TensorInfo
from deepseek_trainer.checkpoints.pace import Pace
from deepseek_trainer.checkpoints.statefile import State, entries, join, split
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.contract.times import utc_now
from deepseek_trainer.storage.durable import remove
from deepseek_trainer.storage.streams import Bytes
from deepseek_trainer.storage.tensorfile import stream
from deepseek_trainer.storage.vault import Context, Vault
from deepseek_trainer.worker.agreement import Exchange, agree, alone

__all__ = ["CheckpointInfo", "CheckpointStore", "Refused"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a state that one rank writes: tensors or shards of them, and its JSON."""

    pieces: Sequence[Piece]
    rest: State


class CheckpointStore:
    """The checkpoints of one job, for one of its ranks.

    All methods are collective: every rank must call them, and where one rank fails all of them raise.
    """

    def __init__(
        self,
        directory: Path,
        vault: Vault,
        *,
        rank: int = 0,
        world_size: int = 1,
        attempt: int = 1,
        exchange: Exchange = alone,
    ) -> None:
        """Take the directory over from earlier runs.  This is collective, too.

        Raises IntegrityError where the record of checkpoints was changed, or is missing beside them.
        """
        self.directory, self.vault = directory, vault
        self._rank, self._world_size, self._attempt = rank, world_size, attempt
        self._exchange = exchange
        self._ledger = Ledger(directory, vault)
        self._on_lead(self._ledger.take_over)

    @property
    def refused(self) -> Sequence[Refused]:
        """The damaged checkpoints that the last `latest` or `at` passed over, newest first.  Known to rank 0 only."""
        return self._ledger.refused

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> CheckpointInfo:
        """Commit every rank's `state` (nested dicts of tensors and JSON) and rank 0's `meta` (JSON) as `step`.

        A tensor that several ranks hold alike is written once.  Of a DTensor each rank writes its shard.  What is
        PER_RANK is written by every rank.  Where the disk refuses, that rank raises StorageError and the others
        TryAgainError; the partial checkpoint is removed, and those before it are untouched.
        """
        return self.commit(step, self.part_of(state), meta)

    def part_of(self, state: Mapping[str, Any]) -> Part:
        """The part of `state` that this rank is to write."""
        tensors, rest = split(state)
        return Part(pieces_to_write(tensors, self._rank, self.file_name, self._agree), rest)

    def commit(self, step: int, part: Part, meta: Mapping[str, Any], pace: Pace | None = None) -> CheckpointInfo:
        """Write, at a pace, and commit what `part_of` returned on each rank: the second half of `save`."""
        partial = self.directory / self._on_lead(lambda: self._ledger.begin(step, self._attempt))
        try:
            written = self._agree(lambda: self._write(partial, step, part, pace))
            self._on_lead(lambda: self._ledger.commit(partial, self._manifest(step, written, meta)))
        except BaseException:
            if self._is_lead:
                remove(partial, ignore_errors=True)
            raise
        return self._each(lambda: open_checkpoint(step_directory(self.directory, step), step, self.vault))

    def beside(self, exchange: Exchange) -> Self:
        """The same store for another thread, whose ranks agree over an exchange of their own."""
        other = copy(self)
        other._exchange = exchange
        return other

    def latest(self) -> CheckpointInfo | None:
        """The newest checkpoint of which every byte authenticates; None if none was ever committed.

        Damaged newer ones are listed in `refused`.  Raises IntegrityError where the newest is missing, or all are
        damaged, and an OSError where none is whole and some could not be read.
        """
        return self._found(self._ledger.newest_whole)

    def at(self, step: int) -> CheckpointInfo | None:
        """The checkpoint of `step`; None if it does not exist, or is damaged."""
        return self._found(lambda: self._ledger.whole(step))

    def load(
        self,
        info: CheckpointInfo,
        into: Mapping[str, Tensor] | None = None,
        wanted: Callable[[str], bool] = lambda _: True,
    ) -> tuple[State, Mapping[str, Any]]:
        """The state, of which every byte is authenticated, and `meta`.  Any number of ranks can load it.

        A tensor that the ranks shared comes whole, or into the tensor that `into` has under its path, which may be a
        DTensor.  Tensors that are not `wanted` are left out.  What is PER_RANK comes as this rank saved it.
        """
        return self._each(lambda: self._read(info, into, wanted)), info.meta

    def set_aside(self, after_step: int) -> None:
        """Make `after_step` the newest checkpoint, or leave none (-1).  Newer ones are renamed, not deleted.

        Raises ConfigError if there is no such checkpoint.
        """
        self._on_lead(lambda: self._ledger.set_aside(after_step))

    def newest_digest(self) -> str | None:
        """The digest of the newest checkpoint's manifest, as it is recorded.  The lead asks, alone."""
        newest = self._ledger.head().newest
        return newest.digest if newest else None

    def mark_exported(self) -> None:
        """Record that the run has ended with the newest checkpoint, and that its model is exported."""
        self._on_lead(self._ledger.mark_exported)

    def prune(self, retention: Retention, best_step: int | None) -> None:
        """Delete the checkpoints that `retention` gives up."""
        self._on_lead(lambda: self._ledger.prune(retention, best_step))

    @property
    def _is_lead(self) -> bool:
        return self._rank == 0

    @property
    def file_name(self) -> str:
        """The file for this rank's tensors."""
        return f"rank-{self._rank:05d}.safetensors"

    def _write(self, partial: Path, step: int, part: Part, pace: Pace | None = None) -> Any:
        """Write this rank's files; returns their entries of the manifest as JSON."""
        context, path = Context(step, self._rank), partial / self.file_name
        tensors = {piece.info.key: piece.tensor for piece in part.pieces}
        content: Iterable[Bytes] = stream(entries(tensors))
        if pace:
            content = pace.through(content, sum(tensor.nbytes for tensor in tensors.values()))
        records = [self.vault.write(path, content, context)]
        if part.rest:
            records.append(self.vault.write(path.with_suffix(".json"), json_text(part.rest).encode(), context))
        return {
            "files": [RankFile(self._rank, record).to_json() for record in records],
            "tensors": [piece.info.to_json() for piece in part.pieces],
        }

    def _manifest(self, step: int, parts: Sequence[Any], meta: Mapping[str, Any]) -> Manifest:
        return Manifest(
            job=self.vault.job,
            step=step,
            created=utc_now(),
            key_id=self.vault.key_id,
            world_size=self._world_size,
            attempt=self._attempt,
            files=tuple(RankFile.from_json(file) for part in parts for file in part["files"]),
            tensors=tuple(TensorInfo.from_json(tensor) for part in parts for tensor in part["tensors"]),
            meta=meta,
        )

    def _read(self, info: CheckpointInfo, into: Mapping[str, Tensor] | None, wanted: Callable[[str], bool]) -> State:
        shared = read_rest(info, 0, self.vault)
        rest = {key: value for key, value in shared.items() if key not in PER_RANK}
        rest |= read_rest(info, self._rank, self.vault)
        return join(read_tensors(info, self._rank, self.vault, into, wanted), rest)

    def _found(self, search: Callable[[], CheckpointInfo | None]) -> CheckpointInfo | None:
        """The checkpoint that `search` finds on rank 0, opened on every rank."""

        def step_found() -> int | None:
            info = search()
            return info.step if info else None

        step = self._on_lead(step_found)
        if step is None:
            return None
        return self._each(lambda: self._recorded(step))

    def _recorded(self, step: int) -> CheckpointInfo:
        head = read_head(self.directory, self.vault)
        assert head is not None, "the lead has just found a checkpoint that it records"
        return find(self.directory, self.vault, head, step)

    def _on_lead(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, which only rank 0 does."""
        return self._agree(work if self._is_lead else lambda: None)[0]

    def _each(self, work: Callable[[], T]) -> T:
        """This rank's result of `work`, once it has succeeded on all ranks."""
        own: list[T] = []
        self._agree(lambda: own.append(work()))
        return own[0]

    def _agree(self, work: Callable[[], Any]) -> list[Any]:
        return agree(self._exchange, work)
