"""Tensors of a checkpoint: read by random access, and only from the file that was recorded."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from deepseek_trainer.checkpoints.dcp import VaultReader, load_planner
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.storage import segments
from deepseek_trainer.storage.unsealing import SealedReader
from support.builders.vault import a_state, a_store


def test_a_single_tensor_is_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4096)
    store = a_store(tmp_path)
    tensors = {f"w{i}": torch.full((4096,), float(i)) for i in range(8)}
    info = store.save(1, {"model": tensors}, {})
    opened = []
    unseal = SealedReader._unseal
    monkeypatch.setattr(SealedReader, "_unseal", lambda self, *a: opened.append(1) or unseal(self, *a))
    one = torch.empty(4096)
    planner = load_planner()
    reader = VaultReader(info, store.vault)
    dcp.load({"model/w5": one}, storage_reader=reader, planner=planner, no_dist=True)
    assert torch.equal(one, tensors["w5"])
    assert len(opened) < info.size_bytes / 4096 / 4


def test_only_what_is_wanted_is_loaded_and_what_is_this_ranks_own(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    info = store.save(1, a_state(1) | {"optimizer": {"layers.0.weight": {"exp_avg": torch.ones(4)}}}, {})
    state, _ = store.load(info, wanted=lambda path: path.startswith("optimizer/"))
    assert state.keys() == {"optimizer", "rng"}
    assert torch.equal(state["optimizer"]["layers.0.weight"]["exp_avg"], torch.ones(4))


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
