"""Changes the directories of a job's checkpoints and the record of them, HEAD.json.  One rank does it.

A crash at any instant of any method loses at most what the method was about to add.  docs/checkpoint-format.md has the
rules and their limits.
"""

import errno
import logging
import os
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from deepseek_trainer.checkpoints.catalog import (
    CheckpointInfo,
    Refused,
    find,
    misnamed_in,
    open_checkpoint,
    read_head,
    step_directory,
    steps_in,
    verify,
)
from deepseek_trainer.checkpoints.manifest import HEAD, MANIFEST, Commit, Head, Manifest
from deepseek_trainer.contract.errors import ConfigError, IntegrityError, TryAgainError, UnreadableError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.storage.commit import remove_leftovers, with_room
from deepseek_trainer.storage.durable import reading, remove, storing, sync
from deepseek_trainer.storage.renaming import PARTIAL
from deepseek_trainer.storage.streams import Advance, unwatched
from deepseek_trainer.storage.vault import Context, Vault

log = logging.getLogger(__name__)

_WAY_OUT: Final = "restore it from a backup, or start the job anew with checkpoint.resumeFrom set to an older step"


@dataclass(slots=True)
class Ledger:
    """One owner's hold on the directory.  Once another one takes it over, every change by this one fails."""

    directory: Path
    vault: Vault
    refused: list[Refused] = field(
        default_factory=list
    )  # what the last `newest_whole` or `whole` refused, newest first
    _unsound: set[int] = field(default_factory=set)  # steps that were ever refused
    _owner: str = field(default_factory=lambda: uuid.uuid4().hex)

    def take_over(self) -> None:
        """Finish or remove what crashed runs left behind, and shut out runs that still write.

        Raises IntegrityError where the record was changed, or is missing beside checkpoints.
        """
        with storing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            sync(self.directory.parent)
        for path in misnamed_in(self.directory):
            log.warning("leaving alone what has no name of a checkpoint: %s", shown(path.name))
        head = read_head(self.directory, self.vault) or Head(self.vault.job, self._owner)
        for step in steps_in(self.directory):
            if head.newest is None or step > head.newest.step:
                head = self._settled(head, step)
        # The record comes first: it shuts out a run that still writes.  A killed run may have left no room for it.
        with_room(self.directory, lambda: self._write(replace(head, owner=self._owner)))
        remove_leftovers(self.directory)

    def head(self) -> Head:
        """The record as it is now.  Raises TryAgainError once another attempt has taken over."""
        head = read_head(self.directory, self.vault)
        if head is None or head.owner != self._owner:
            raise TryAgainError(
                f"another attempt has taken {self.directory} over: this one may not write there any more",
                hint="end one of the two runs that share this volume",
            )
        return head

    def begin(self, step: int, attempt: int) -> str:
        """Make the partial directory into which all ranks write their part of `step`; returns its name."""
        self.head()
        path = step_directory(self.directory, step)
        partial = path.with_name(f"{path.name}{PARTIAL}{attempt}-{uuid.uuid4().hex}")
        with storing(partial):
            partial.mkdir()
        return partial.name

    def commit(self, partial: Path, manifest: Manifest) -> None:
        """Turn a partial directory, in which all ranks have synced their files, into the newest checkpoint."""
        step = manifest.step
        self._give_up_from(step)
        head = self.head()
        newest = head.newest.digest if head.newest else None
        manifest = replace(manifest, lineage=head.lineage, previous=newest)
        record = self.vault.write(partial / MANIFEST, manifest.to_json(), Context(step))
        path = step_directory(self.directory, step)
        with storing(path):
            sync(partial)
            if path.exists():
                self._rename_aside(step)  # a directory of that name that was never recorded
            partial.rename(path)
            sync(self.directory)
        self._write(head.with_commit(Commit(step, record.digest)))
        self._unsound.discard(step)

    def newest_whole(self, advance: Advance = unwatched) -> CheckpointInfo | None:
        """The newest checkpoint of which every byte authenticates; None if none was ever committed.

        `advance` is called with the size of each piece that was read [bytes], from any thread.

        Raises IntegrityError where the newest checkpoint is missing, or all are damaged.  Raises an OSError where none
        is whole and some could not be read: another attempt may be able to.
        """
        self.refused = []
        head = self.head()
        if head.newest is None:
            return None
        if not (newest := step_directory(self.directory, head.newest.step)).exists():
            raise IntegrityError(f"the newest checkpoint, {newest}, is missing", hint=f"{_WAY_OUT}: {_listed(head)}")
        for step in reversed(head.steps):
            if info := self._whole(head, step, advance):
                return info
        if any(refused.unreadable for refused in self.refused):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(newest))
        raise IntegrityError(
            f"no checkpoint in {self.directory} authenticates; the newest: {self.refused[0].reason}",
            hint="check the key; else restore a checkpoint from a backup",
        )

    def whole(self, step: int) -> CheckpointInfo | None:
        """The checkpoint of `step`; None if it is not recorded, or damaged."""
        self.refused = []
        head = self.head()
        return None if head.digest_of(step) is None else self._whole(head, step)

    def set_aside(self, after_step: int) -> None:
        """Make `after_step` the newest checkpoint, or leave none (-1).  Newer ones are renamed, not deleted.

        Raises ConfigError if `after_step` is not recorded.
        """
        head = self.head()
        if after_step >= 0 and after_step not in head.steps:
            raise ConfigError(
                f"no checkpoint of step {after_step} in {self.directory} to resume from",
                hint=f"there are: {_listed(head)}",
            )
        if newer := frozenset(step for step in head.steps if step > after_step):
            # The record comes first, with a new lineage: after a crash in between, take_over finishes the renaming.
            self._write(replace(head.without(newer), lineage=head.lineage + 1))
        with storing(self.directory):
            for step in steps_in(self.directory):
                if step > after_step:
                    self._rename_aside(step)
            sync(self.directory)

    def mark_exported(self) -> None:
        """Record that the run that ends with the newest checkpoint has exported its model."""
        head = self.head()
        if head.newest:
            self._write(replace(head, exported=head.newest.digest))

    def prune(self, retention: Retention, best_step: int | None) -> None:
        """Delete the checkpoints that `retention` gives up.  One that was refused does not count among those kept."""
        head = self.head()
        stay = retention.kept(head.steps, best_step) | retention.kept(set(head.steps) - self._unsound, best_step)
        gone = frozenset(head.steps) - stay
        # The directories go first: a recorded old checkpoint that is gone does no harm, an unrecorded one would stay.
        with storing(self.directory):
            for step in gone:
                self._delete(step)
        pruned = replace(head.without(gone), best=best_step if best_step in stay else None)
        if pruned != head:
            self._write(pruned)

    def _give_up_from(self, step: int) -> None:
        """Set aside the recorded checkpoints from `step` on.  They are damaged, or the run would not save `step` again.

        This comes before the new one takes the name: a crash in between must not leave a record of what is missing.
        """
        recorded = self.head().steps
        if recorded and recorded[-1] >= step:
            self.set_aside(max((each for each in recorded if each < step), default=-1))

    def _settled(self, head: Head, step: int) -> Head:
        """Decide about a checkpoint that is newer than all recorded ones; returns the record after that.

        If its run crashed before recording it, it is recorded.  If a run crashed while setting it aside, it is renamed.
        Anything else was put there, and stays unused.
        """
        path = step_directory(self.directory, step)
        try:
            with reading(path):
                info = open_checkpoint(path, step, self.vault)
        except IntegrityError as error:
            log.warning("ignoring a checkpoint that was never recorded: %s", error)
            return head
        if head.is_followed_by(info.manifest):
            return head.with_commit(Commit(step, info.manifest_digest))
        if info.manifest.lineage < head.lineage:
            self._rename_aside(step)
        return head

    def _whole(self, head: Head, step: int, advance: Advance = unwatched) -> CheckpointInfo | None:
        path = step_directory(self.directory, step)
        try:
            with reading(path):
                info = find(self.directory, self.vault, head, step)
                verify(info, self.vault, advance)
        except IntegrityError as error:
            log.warning("refusing the checkpoint of step %d: %s", step, error.problem)
            self.refused.append(Refused(step, path, error.problem, isinstance(error, UnreadableError)))
            self._unsound.add(step)
            return None
        self._unsound.discard(step)
        return info

    def _rename_aside(self, step: int) -> None:
        path = step_directory(self.directory, step)
        path.rename(path.with_name(f"{path.name}.set-aside-{uuid.uuid4().hex}"))

    def _delete(self, step: int) -> None:
        """Rename it in one step before its files go, so that no half checkpoint keeps its name."""
        path = step_directory(self.directory, step)
        if path.exists():
            remove(path.rename(path.with_name(f"{path.name}.pruned-{uuid.uuid4().hex}")))

    def _write(self, head: Head) -> None:
        self.vault.replace(self.directory / HEAD, head.to_json())


def _listed(head: Head) -> str:
    return ", ".join(map(str, head.steps)) or "none"
