"""Buffers that training changes are part of what a checkpoint holds."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from deepseek_trainer.base_model.families import FAMILIES
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.model.buffers import moved_buffers, saved_buffers
from deepseek_trainer.storage.vault import Purpose, Vault
from support.builders.loop import ALONE, a_learner, a_model, config


@pytest.fixture(scope="module", autouse=True)
def _process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, Vault("ml/tiny", Purpose.CHECKPOINT))


def a_learner_of(bias):
    model = a_model()
    mlp = model.model.layers[0].mlp
    mlp.register_buffer("bias_of_load", torch.full((3,), bias))
    mlp.register_buffer("passing", torch.zeros(3), persistent=False)
    return a_learner(model, config().optimization, ALONE)


@pytest.fixture(autouse=True)
def moved(monkeypatch):
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], moved=("bias_of_load",)))


@pytest.mark.parametrize("load", ["load", "load_weights"])
def test_a_buffer_that_training_moved_comes_back_with_the_weights(store, load):
    learner, other = a_learner_of(0.5), a_learner_of(0.0)
    (name,) = moved_buffers(learner.model)
    info = store.save(1, learner.state(), {})
    assert f"model/{name}" in {tensor.name for tensor in info.manifest.tensors}
    kept = moved_buffers(other.model)[name]
    getattr(other, load)(store, info)
    assert kept.tolist() == [0.5] * 3, "in place: the module holds this very tensor"


def test_buffers_that_follow_from_config_json_are_neither_saved_nor_moved():
    learner = a_learner_of(0.5)
    assert [name.rpartition(".")[2] for name in saved_buffers(learner.model)] == ["bias_of_load"]


def test_a_checkpoint_without_such_a_buffer_is_of_another_model(store, monkeypatch):
    learner = a_learner_of(0.5)
    with monkeypatch.context() as without:
        without.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], moved=()))
        info = store.save(1, a_learner_of(0.5).state(), {})
    with pytest.raises(ConfigError, match=r"another model: .*bias_of_load"):
        learner.load(store, info)
