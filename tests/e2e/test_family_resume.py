"""A run of each family that stopped and goes on ends in the same bits as one that did not stop."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from deepseek_trainer.contract.method import MethodSpec
from deepseek_trainer.model.dropout import drop_out
from deepseek_trainer.model.method import trainable
from support.builders.families import SPARSE, VARIANTS, a_model, model_type_of
from support.builders.loop import ALONE, a_loop, config, run_until_stopped, weights

LORA = {"type": "LoRA", "lora": {"rank": 2, "dropout": 0.1, "targetModules": ["all-linear"]}}
DORA = {"type": "LoRA", "lora": LORA["lora"] | {"dora": True}}


@pytest.fixture(scope="module", autouse=True)
def _process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("variant", "method"),
    [
        *((variant, {}) for variant in VARIANTS | SPARSE if variant == model_type_of(variant)),
        *((variant, LORA) for variant in ("gemma2", "phi3", "glm4", "gpt2")),
        *((variant, DORA) for variant in ("qwen3", "phi3", "gpt2", "deepseek_v3")),
    ],
)
def test_a_run_that_stopped_ends_in_the_same_bits(tmp_path: Path, variant: str, method: dict):
    base = trainable(a_model(variant).train(), MethodSpec.model_validate(method), 0, ALONE.device, torch.float32)
    drop_out(base, 0.1)
    settings = config(maxSteps=2, dropout=0.1)
    whole = a_loop(settings, tmp_path / "whole", model=copy.deepcopy(base))
    whole.run()
    first = a_loop(settings, tmp_path / "parts", stop_after=1, model=copy.deepcopy(base))
    run_until_stopped(first)
    second = a_loop(settings, tmp_path / "parts", model=copy.deepcopy(base))
    second.run()
    assert first.reporter.losses + second.reporter.losses == whole.reporter.losses
    found, wanted = weights(second), weights(whole)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
