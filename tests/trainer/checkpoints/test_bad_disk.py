"""Disks that fail while a checkpoint is read or written: what was committed before stays, and the error names them."""

import errno
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek_trainer.checkpoints.catalog import list_checkpoints
from deepseek_trainer.checkpoints.store import Refused
from deepseek_trainer.contract.errors import TryAgainError
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.storage.durable import StorageError
from deepseek_trainer.worker.failure import Failure
from support.builders.vault import Ranks, a_state, a_store, latest_weights
from support.faults.crashes import bad_sector


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])
def test_a_checkpoint_that_cannot_be_read_is_passed_over_and_reported_as_such(
    tmp_path: Path, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(tmp_path, sealed=sealed)
    for step in (1, 2, 3):
        store.save(step, a_state(step), {})
    with monkeypatch.context() as patch:
        bad_sector(patch, "step-00000003/rank-", "step-00000002/manifest")
        assert latest_weights(store) == 1
        assert [refused.step for refused in store.refused] == [3, 2]
        assert all("cannot be read: Input/output error" in refused.reason for refused in store.refused)
        listed = list_checkpoints(store.directory, store.vault)
        assert [each.step for each in listed if isinstance(each, Refused)] == [2]
    assert latest_weights(store) == 3


def test_where_no_checkpoint_can_be_read_the_next_attempt_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = a_store(tmp_path)
    for step in (1, 2):
        store.save(step, a_state(step), {})
    with monkeypatch.context() as patch:
        bad_sector(patch, "step-0000000")
        with pytest.raises(OSError, match="Input/output error") as caught:
            store.latest()
    failure = Failure.of(caught.value)
    assert (failure.exit_code, failure.reason) == (ExitCode.TRY_AGAIN, "Storage")
    assert latest_weights(store) == 2


def test_a_server_that_forgot_a_file_is_no_reason_to_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = a_store(tmp_path)
    for step in (1, 2):
        store.save(step, a_state(step), {})
    with monkeypatch.context() as patch:
        bad_sector(patch, "step-00000002", number=errno.ESTALE)
        with pytest.raises(OSError, match="Stale file handle"):
            store.latest()


class BadDisk:
    """Lets the disk fail with `number` wherever one of Python's own functions touches `place`."""

    def __init__(self, number: int, place: str, patch: pytest.MonkeyPatch) -> None:
        self._number, self._place, self.failed = number, place, 0
        fsync, rename, check = os.fsync, os.rename, self._check

        class File(io.FileIO):
            def write(self, data: Any, /) -> int:
                check("write", self.fileno())
                return super().write(data)

        patch.setattr(os, "fsync", lambda file: (check("fsync", file), fsync(file)))
        patch.setattr(os, "rename", lambda old, new: (check("rename", new), rename(old, new)))
        patch.setattr(io, "FileIO", File)

    def _check(self, call: str, file: Any) -> None:
        path = str(Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else file)
        if re.search(self._place, f"{call} {path}"):
            self.failed += 1
            raise OSError(self._number, os.strerror(self._number), path)


DATA, MANIFEST, NAME = r"step-00000002\.partial.*/rank-00001", r"step-00000002\.partial.*/manifest", "step-00000002$"


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("place", "rank"),
    [(f"write .*{DATA}", 1), (f"fsync .*{DATA}", 1), (f"fsync .*{MANIFEST}", 0), (f"rename .*{NAME}", 0)],
    ids=["write of data", "fsync of data", "fsync of the manifest", "rename"],
)
def test_a_disk_that_fails_under_one_rank_is_a_storage_error_of_all_and_costs_no_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, rank: int, number: int
) -> None:
    def saves(own: int, exchange: Any) -> Any:
        store = a_store(tmp_path, rank=own, world_size=2, exchange=exchange)
        store.save(1, {"rng": {"cpu": torch.full((4,), own)}} | a_state(1), {})
        return store.save(2, {"rng": {"cpu": torch.full((4,), own)}} | a_state(2), {})

    with monkeypatch.context() as patch:
        disk = BadDisk(number, place, patch)
        raised = Ranks(2).run(saves)
    assert disk.failed == 1
    own, other = raised[rank], raised[1 - rank]
    assert isinstance(own, StorageError)
    assert own.errno == number
    assert isinstance(other, TryAgainError)
    assert str(other).startswith(f"rank {rank}: cannot write")
    assert os.strerror(number) in str(other)
    assert {path.name for path in (tmp_path / "checkpoints").glob("step-*")} == {"step-00000001"}
    assert latest_weights(a_store(tmp_path)) == 1
