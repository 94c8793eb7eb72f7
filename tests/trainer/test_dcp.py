"""Tensors of a checkpoint, sharded and not, over different numbers of ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from deepseek_trainer import sealing
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.dcp import VaultReader
from gloo_ranks import on_ranks
from shard_stories import load_sharded, save_replicated, save_sharded, through_torch
from vault_builders import a_state, a_store


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


def test_a_single_tensor_is_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "SEGMENT_BYTES", 4096)
    store = a_store(tmp_path)
    tensors = {f"w{i}": torch.full((4096,), float(i)) for i in range(8)}
    info = store.save(1, {"model": tensors}, {})
    opened = []
    unseal = sealing.SealedReader._unseal
    monkeypatch.setattr(sealing.SealedReader, "_unseal", lambda self, *a: opened.append(1) or unseal(self, *a))
    one = torch.empty(4096)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    reader = VaultReader(info, store.vault)
    dcp.load({"model/w5": one}, storage_reader=reader, planner=planner, no_dist=True)
    assert torch.equal(one, tensors["w5"])
    assert len(opened) < info.size_bytes / 4096 / 4


@pytest.mark.parametrize("wrong", [{"model/layers.0.weight": torch.empty(5)}, {"model/other": torch.empty(4)}])
def test_tensors_of_another_model_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    store = a_store(tmp_path)
    info = store.save(1, a_state(1), {})
    with pytest.raises(ConfigError, match="the checkpoint is of another model"):
        store.load(info, wrong)


def test_a_file_of_another_save_of_the_same_step_does_not_open(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    old = store.save(1, a_state(1), {})
    other = (old.path / "rank-00000.safetensors.sealed").read_bytes()
    store.set_aside(after_step=-1)
    new = store.save(1, a_state(2), {})
    (new.path / "rank-00000.safetensors.sealed").write_bytes(other)
    with pytest.raises(IntegrityError, match="is not the file that was recorded: salt"):
        store.load(new)
