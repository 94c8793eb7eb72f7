"""From an adapter that one job has trained to the next job on top of it."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from deepseek_trainer.contract.config import TrainingConfig
from support.builders.data import CLAIM, pairs, texts, write_jsonl
from support.builders.model import a_batch, a_tokenizer, tiny_model
from support.builders.run import a_job, a_worker, trained

BASE = {"claimName": "models", "path": "base"}
ADAPTER = {"claimName": "models", "path": "adapter"}
SLOW = {"maxSteps": 1, "globalBatchSize": 2, "learningRate": 1e-9, "schedule": "Constant", "warmupSteps": 0}
FAST = SLOW | {"maxSteps": 6, "learningRate": 0.01}


def a_base(directory: Path) -> None:
    tiny_model(hidden_size=64, head_dim=16).save_pretrained(directory)
    a_tokenizer().save_pretrained(directory)


def on_the_base(optimization: dict, data: dict, **parts: object) -> TrainingConfig:
    """A job on `models/base`."""
    given = a_job(**optimization).model_dump(mode="json", by_alias=True, exclude_none=True)
    train = {"train": {"claimName": CLAIM}, "sequenceLength": 128, "validationFraction": 0.3}
    return TrainingConfig.model_validate(given | {"model": {"base": BASE}, "data": train | data} | parts)


def logits(model):
    with torch.no_grad():
        return model.float().eval()(input_ids=a_batch().tokens_BT).logits


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The directory of a base, and of the adapter that a job has exported."""
    root = tmp_path_factory.mktemp("sft")
    with pytest.MonkeyPatch.context() as patch, a_worker(root, patch) as paths:
        a_base(paths.claim("models", "base"))
        write_jsonl(paths, "train/a.jsonl", texts(12))
        lora = {"rank": 4, "alpha": 64, "dropout": 0.0, "rankStabilized": True}
        method, export = {"type": "LoRA", "lora": lora}, {"formats": ["Adapter"]}
        result = trained(on_the_base(FAST, {"format": "Text"}, method=method, export=export), paths)
        return paths.claim("models", "base"), result / "adapter"


@pytest.mark.parametrize("type_", ["LoRA", "QLoRA", "Full"])
def test_preferences_are_learned_on_top_of_an_adapter_and_against_it(taught, tmp_path, monkeypatch, type_):
    base, adapter = taught
    with a_worker(tmp_path, monkeypatch) as paths:
        shutil.copytree(base, paths.claim("models", "base"))
        shutil.copytree(adapter, paths.claim("models", "adapter"))
        write_jsonl(paths, "train/a.jsonl", pairs(12))
        model = {"base": BASE, "adapter": ADAPTER}
        job = on_the_base(SLOW, {"format": "Preference"}, model=model, method={"type": type_})
        result = trained(job, paths)
    before = json.loads((result / "evaluation.json").read_text())["before"]
    assert (before["loss"], before["rewardMargin"]) == (pytest.approx(math.log(2)), 0.0), "the reference is the sum"
    plain = AutoModelForCausalLM.from_pretrained(base)
    untaught = logits(plain)
    summed = logits(PeftModel.from_pretrained(plain, adapter).merge_and_unload())
    learned = logits(AutoModelForCausalLM.from_pretrained(result))
    away = 0.1 * float((summed - untaught).norm()) if type_ != "QLoRA" else float((learned - untaught).norm())
    assert float((learned - summed).norm()) < away, "a complete model, with the adapter in it"
    assert "| Adapter added to it | models/adapter |" in (result / "README.md").read_text()
