"""Saves beside the training."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.checkpoints.dcp import Piece
from deepseek_trainer.checkpoints.ledger import Ledger
from deepseek_trainer.checkpoints.saver import HostCopies, Saver
from deepseek_trainer.contract.errors import TryAgainError
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.storage.durable import StorageError
from deepseek_trainer.worker.agreement import Exchange, alone
from support.builders.vault import Ranks, a_state, a_store, weights_of


class Gate:
    """Holds every file that the vault writes until it is opened."""

    def __init__(self, write: Callable[..., Any]) -> None:
        self._write, self._open, self.reached = write, threading.Event(), threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        self.reached.set()
        assert self._open.wait(10)
        return self._write(*arguments)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def saver(tmp_path: Path) -> Saver:
    return Saver(a_store(tmp_path), Retention(keep_last=2), alone)


@pytest.fixture
def gate(saver: Saver) -> Iterator[Gate]:
    gate = Gate(saver.store.vault.write)
    saver.store.vault.write = gate  # type: ignore[method-assign]
    yield gate
    gate.open()


def steps(saver: Saver) -> list[int]:
    return [saved.info.step for saved in saver.finished()]


def newest(saver: Saver) -> tuple[int, float]:
    info = saver.store.latest()
    assert info is not None
    return info.step, weights_of(saver.store.load(info)[0])


def test_the_caller_goes_on_and_changes_its_state_while_the_old_one_is_written(saver: Saver, gate: Gate) -> None:
    state, meta = a_state(1), {"run": {"step": 1}}
    saver.save(1, state, meta, None)
    saver.before_change()
    assert gate.reached.wait(10)
    state["model"]["layers.0.weight"].fill_(99)
    meta["run"]["step"] = 99
    assert steps(saver) == []
    gate.open()
    saver.wait()
    assert newest(saver) == (1, 1.0)
    assert saver.store.load(saver.store.latest())[1] == {"run": {"step": 1}}  # type: ignore[arg-type]


def test_a_save_waits_for_the_one_before(saver: Saver, gate: Gate) -> None:
    saver.save(1, a_state(1), {}, None)
    assert gate.reached.wait(10)
    timer = threading.Timer(0.05, gate.open)
    timer.start()
    saver.save(2, a_state(2), {}, None)
    assert steps(saver)[0] == 1
    saver.wait()
    assert newest(saver) == (2, 2.0)


class Held(HostCopies):
    """Copies that wait until they are allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = threading.Event()

    def of(self, pieces: Sequence[Piece]) -> list[Piece]:
        assert self.allowed.wait(10)
        return super().of(pieces)


@pytest.mark.parametrize("waits", [False, True])
def test_the_copy_is_waited_for_at_once_or_before_the_state_changes(tmp_path: Path, waits: bool) -> None:
    saver = Saver(a_store(tmp_path), Retention(keep_last=1), alone, waits_for_copy=waits)
    held = saver._copies = Held()
    release = threading.Timer(0.05, held.allowed.set)
    if waits:
        release.start()
    state = a_state(1)
    saver.save(1, state, {}, None)
    assert held.allowed.is_set() is waits, "a save that does not wait returns before its copy is made"
    if not waits:
        release.start()
    saver.before_change()
    assert held.allowed.is_set()
    state["model"]["layers.0.weight"].fill_(99)
    saver.wait()
    assert newest(saver) == (1, 1.0)
    (saved,) = saver.finished()
    assert saved.stall_seconds >= 0.04


def test_a_copy_that_fails_is_reported_and_holds_nobody_up(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> Any:
        raise MemoryError("no host memory")

    monkeypatch.setattr(saver._copies, "of", refuse)
    saver.save(1, a_state(1), {}, None)
    saver.before_change()
    with pytest.raises(MemoryError):
        saver.wait()


def test_finished_saves_are_returned_once_with_the_time_that_the_caller_waited(saver: Saver) -> None:
    saver.save(1, a_state(1), {}, None)
    saver.wait()
    (saved,) = saver.finished()
    assert (saved.info.step, 0 < saved.stall_seconds <= saved.seconds) == (1, True)
    assert saver.finished() == []


def test_what_retention_gives_up_goes_after_the_commit(saver: Saver) -> None:
    for step in (1, 2, 3, 4):
        saver.save(step, a_state(step), {}, 1)
    saver.wait()
    names = sorted(path.name for path in saver.store.directory.glob("step-*"))
    assert names == ["step-00000001", "step-00000003", "step-00000004"]


@pytest.mark.parametrize("beside", [True, False], ids=["beside the training", "at once"])
def test_where_the_lead_cannot_delete_all_ranks_hear_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    def save(rank: int, exchange: Exchange) -> None:
        store = a_store(tmp_path, rank=rank, world_size=2, exchange=exchange)
        saver = Saver(store, Retention(keep_last=1), exchange if beside else None)
        for step in (1, 2):
            saver.save(step, a_state(step), {}, None)
        saver.wait()

    def refuse(_ledger: Ledger, _step: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Ledger, "_delete", refuse)
    lead, other = Ranks(2).run(save)
    assert isinstance(lead, StorageError)
    assert isinstance(other, TryAgainError)
    assert "rank 0: cannot write" in str(other)
    assert newest(Saver(a_store(tmp_path), Retention())) == (2, 2.0)


def test_a_save_that_fails_is_reported_at_once_and_leaves_the_one_before(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver.save(1, a_state(1), {}, None)
    saver.wait()

    def full(path: Path, *_: Any) -> Any:
        raise StorageError(path, OSError(28, "No space left on device"))

    with monkeypatch.context() as patch:
        patch.setattr(saver.store.vault, "write", full)
        saver.save(2, a_state(2), {}, None)
        futures.wait([saver._running])  # type: ignore[list-item]
        assert saver.has_failed
        assert [saved.info.step for saved in saver.finished()] == [1]
        with pytest.raises(StorageError, match="No space left on device"):
            saver.wait()
    assert not saver.has_failed
    assert newest(saver) == (1, 1.0)
    saver.save(3, a_state(3), {}, None)
    saver.wait()
    assert newest(saver) == (3, 3.0)


def test_without_a_group_of_its_own_a_save_is_done_when_it_returns(tmp_path: Path) -> None:
    saver = Saver(a_store(tmp_path), Retention(keep_last=1))
    for step in (1, 2):
        saver.save(step, a_state(step), {}, None)
    assert [saved.stall_seconds == saved.seconds for saved in saver.finished()] == [True, True]
    assert [path.name for path in saver.store.directory.glob("step-*")] == ["step-00000002"]


def test_host_copies_use_their_memory_again(tmp_path: Path) -> None:
    store, copies = a_store(tmp_path), HostCopies()
    first, second = (copies.of(store.part_of(a_state(step)).pieces) for step in (1, 2))
    assert [piece.tensor.data_ptr() for piece in first] == [piece.tensor.data_ptr() for piece in second]
    assert float(second[0].tensor[0]) == 2
    larger = copies.of(store.part_of(a_state(3, floats=5)).pieces)
    assert larger[0].tensor.shape == (5,)
