"""Batches that are made ahead are those that would have been made."""

import threading

import pytest
import torch

from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.loader import Ahead, loader
from deepseek_trainer.worker.distributed import World
from support.builders.loop import DIGEST, RandomRows

CPU = torch.device("cpu")


def a_cursor() -> Cursor:
    return Cursor(seed=3, rows=10, global_batch=6, data_digest=DIGEST)


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_made_ahead_are_the_same_to_the_last_bit(rank: int):
    load = loader(RandomRows(10), World(rank, 2, CPU), 2)
    ahead, cursor = Ahead(load), a_cursor()
    for _ in range(7):
        found, expected = ahead(cursor), load(cursor)
        assert [len(batch.tokens_BT) for batch in found] == [2, 1]
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.tokens_BT, other.tokens_BT)
            assert torch.equal(one.learned_targets_N, other.learned_targets_N)
        cursor = cursor.advanced()


def test_the_next_step_is_made_by_another_thread_before_it_is_asked_for():
    asked, made = [], threading.Event()

    def load(cursor: Cursor) -> list:
        asked.append((cursor.consumed, threading.current_thread().name))
        if cursor.consumed == 6:
            made.set()
        return []

    Ahead(load)(a_cursor())
    assert made.wait(5)
    assert [consumed for consumed, _ in asked] == [0, 6]
    assert {name.rpartition("_")[0] for _, name in asked} == {"loader"}


def test_a_caller_that_goes_elsewhere_gets_what_is_there():
    ahead = Ahead(lambda cursor: [cursor.consumed])
    start = a_cursor()
    assert ahead(start) == [0]
    later = start.advanced().advanced()
    assert [ahead(cursor) for cursor in (later, start, start.advanced())] == [[12], [0], [6]]


def test_an_error_comes_when_the_step_is_due_and_not_before():
    def load(cursor: Cursor) -> list:
        if cursor.consumed == 6:
            raise OSError(116, "Stale file handle")
        return []

    ahead, start = Ahead(load), a_cursor()
    assert ahead(start) == []
    with pytest.raises(OSError, match="Stale file handle"):
        ahead(start.advanced())


def test_the_thread_begins_with_what_it_is_given():
    names = []
    Ahead(lambda cursor: [], lambda: names.append(threading.current_thread().name))(a_cursor())
    assert names == ["loader_0"]
