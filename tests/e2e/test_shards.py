"""Checkpoints that real ranks shard among them, and read back in another number."""

from pathlib import Path

import pytest

from support.builders.vault import a_store
from support.ranks.dcp_stories import load_sharded, save_replicated, save_sharded, through_torch
from support.ranks.gloo import on_ranks


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a model and its moments, sharded by FSDP2 over two ranks."""
    root = tmp_path_factory.mktemp("sharded")
    assert on_ranks(2, save_sharded, root) == [None, None]
    return root


@pytest.mark.parametrize(("ranks", "sharded"), [(1, False), (2, True), (3, True)])
def test_what_two_ranks_saved_is_loaded_by_any_number(saved_by_two: Path, ranks: int, sharded: bool) -> None:
    own = [["rng/cpu"] if rank < 2 else [] for rank in range(ranks)]
    assert on_ranks(ranks, load_sharded, saved_by_two, sharded) == [(True, each) for each in own]


def test_each_rank_writes_its_shards_and_the_manifest_knows_where_they_belong(saved_by_two: Path) -> None:
    info = a_store(saved_by_two).latest()
    assert info is not None
    shards = [tensor for tensor in info.manifest.tensors if tensor.name == "model/0.weight"]
    assert [(t.shape, t.offset, t.whole, t.file) for t in shards] == [
        ((4, 5), (0, 0), (7, 5), "rank-00000.safetensors"),
        ((3, 5), (4, 0), (7, 5), "rank-00001.safetensors"),
    ]


def test_what_ranks_hold_alike_is_written_once_and_by_all_of_them(tmp_path: Path) -> None:
    (first, count), (second, _) = on_ranks(2, save_replicated, tmp_path)
    assert first
    assert second
    assert len(first) + len(second) == len({*first, *second}) == count


def test_torchs_own_save_and_load_work_on_our_store(tmp_path: Path) -> None:
    assert on_ranks(2, through_torch, tmp_path) == [True, True]
