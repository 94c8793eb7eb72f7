"""Checkpoints as a run writes and reads them: a directory appears whole, or not at all.

A save: every rank writes and syncs its files in `step-N.partial-<attempt>-<uuid>`; rank 0 then writes the
manifest, renames the directory to `step-N` and records it in HEAD.json.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

from deepseek_trainer.agreement import Exchange, agree, alone
from deepseek_trainer.catalog import (
    CheckpointInfo,
    Refused,
    find,
    open_checkpoint,
    read_head,
    read_rank,
    step_directory,
)
from deepseek_trainer.contract.config import Retention
from deepseek_trainer.contract.times import utc_now
from deepseek_trainer.ledger import Ledger
from deepseek_trainer.manifest import Manifest, RankFile, TensorInfo
from deepseek_trainer.statefile import AsTensor, State, as_torch, entries, split
from deepseek_trainer.tensorfile import stream
from deepseek_trainer.vault import Context, Vault

__all__ = ["CheckpointInfo", "CheckpointStore", "Refused"]

T = TypeVar("T")

PER_RANK: Final = frozenset({"rng"})  # entries of a state that belong to their rank alone


class CheckpointStore:
    """The checkpoints of one job, as one of its ranks uses them.

    All methods but `prune` are collective: every rank calls them, and where one rank fails all raise.
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
        as_tensor: AsTensor = as_torch,
    ) -> None:
        """Takes the directory over from earlier runs: collective too.

        Raises IntegrityError where the record of checkpoints was changed, or is missing beside them.
        """
        self.directory, self.vault = directory, vault
        self._rank, self._world_size, self._attempt = rank, world_size, attempt
        self._exchange, self._as_tensor = exchange, as_tensor
        self._ledger = Ledger(directory, vault)
        self._on_lead(self._ledger.take_over)

    @property
    def refused(self) -> Sequence[Refused]:
        """Damaged checkpoints that the last `latest` or `at` passed over, newest first; on rank 0."""
        return self._ledger.refused

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> CheckpointInfo:
        """Commit every rank's `state` (nested dicts of tensors and JSON) and rank 0's `meta` (JSON) as `step`.

        Raises StorageError where the disk refuses, and TryAgainError on the other ranks: a partial checkpoint
        is removed, those before it are untouched.
        """
        partial = self.directory / self._on_lead(lambda: self._ledger.begin(step, self._attempt))
        try:
            shares = self._agree(lambda: self._write_share(partial, step, state))
            self._on_lead(lambda: self._ledger.commit(partial, self._manifest(step, shares, meta)))
        except BaseException:
            if self._is_lead:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return self._each(lambda: open_checkpoint(step_directory(self.directory, step), step, self.vault))

    def latest(self) -> CheckpointInfo | None:
        """The newest checkpoint of which every byte authenticates; None where none was ever committed.

        Damaged newer ones are listed in `refused`.  Raises IntegrityError where the newest is missing, or all
        are damaged.
        """
        return self._found(self._ledger.newest_whole)

    def at(self, step: int) -> CheckpointInfo | None:
        """The checkpoint of `step`; None where there is none, or it is damaged."""
        return self._found(lambda: self._ledger.whole(step))

    def load(self, info: CheckpointInfo) -> tuple[State, Mapping[str, Any]]:
        """This rank's state, every byte authenticated, and `meta`.

        However many ranks saved: what rank 0 saved without its PER_RANK entries, and what this rank saved.
        """
        return self._each(lambda: self._read(info)), info.meta

    def set_aside(self, after_step: int) -> None:
        """Make `after_step` the newest (-1: none) by renaming newer checkpoints; nothing is deleted.

        Raises ConfigError where there is no such checkpoint.
        """
        self._on_lead(lambda: self._ledger.set_aside(after_step))

    def prune(self, retention: Retention, best_step: int | None) -> None:
        """Delete, on rank 0, the checkpoints that `retention` gives up."""
        if self._is_lead:
            self._ledger.prune(retention, best_step)

    @property
    def _is_lead(self) -> bool:
        return self._rank == 0

    def _write_share(self, partial: Path, step: int, state: Mapping[str, Any]) -> Any:
        """This rank's files; returns their entries of the manifest as JSON."""
        context, name = Context(step, self._rank), f"rank-{self._rank:05d}"
        tensors, rest = split(state)
        stored = entries(tensors)
        records = [self.vault.write(partial / f"{name}.safetensors", stream(stored), context)]
        if rest:
            records.append(self.vault.write(partial / f"{name}.json", json.dumps(rest).encode(), context))
        return {
            "files": [RankFile(self._rank, record).to_json() for record in records],
            "tensors": [asdict(TensorInfo(e.name, e.dtype, e.shape, records[0].name)) for e in stored],
        }

    def _manifest(self, step: int, shares: Sequence[Any], meta: Mapping[str, Any]) -> Manifest:
        return Manifest(
            job=self.vault.job,
            step=step,
            created=utc_now(),
            key_id=self.vault.key_id,
            world_size=self._world_size,
            attempt=self._attempt,
            files=tuple(RankFile.from_json(file) for share in shares for file in share["files"]),
            tensors=tuple(TensorInfo.from_json(tensor) for share in shares for tensor in share["tensors"]),
            meta=meta,
        )

    def _read(self, info: CheckpointInfo) -> State:
        shared = read_rank(info, 0, self.vault, self._as_tensor)
        if self._is_lead:
            return shared
        own = read_rank(info, self._rank, self.vault, self._as_tensor)
        return {key: value for key, value in shared.items() if key not in PER_RANK} | own

    def _found(self, search: Callable[[], CheckpointInfo | None]) -> CheckpointInfo | None:
        """Rank 0's choice, on every rank."""

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
        """What `work` gives on rank 0, which alone does it."""
        return self._agree(work if self._is_lead else lambda: None)[0]

    def _each(self, work: Callable[[], T]) -> T:
        """What `work` gives on this rank, once it has succeeded on all."""
        own: list[T] = []
        self._agree(lambda: own.append(work()))
        return own[0]

    def _agree(self, work: Callable[[], Any]) -> list[Any]:
        return agree(self._exchange, work)
