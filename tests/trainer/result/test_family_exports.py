"""Exports of every family as plain transformers loads them: no key too many or too few, and the answers of training."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deepseek_trainer.base_model.source import prepare_model
from deepseek_trainer.contract.errors import NotFiniteError
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.model.loading import load_model, trainable_parameters
from deepseek_trainer.model.method import trainable
from deepseek_trainer.result.export import Results, export
from deepseek_trainer.tasks.language.task import LanguageTask
from deepseek_trainer.worker.vaults import data_vault
from support.builders.families import VARIANTS, a_directory, a_model
from support.builders.model import VOCAB, a_config, a_tokenizer, paths_with_base

CPU = torch.device("cpu")
RESULTS = Results(events=[], weights="of step 1", step=1, requested=MethodType.FULL)
METHODS = {
    "Full": {},
    "LoRA": {"type": "LoRA", "lora": {"rank": 2, "dropout": 0}},
    "QLoRA": {"type": "QLoRA", "lora": {"rank": 2, "dropout": 0}},
}
BF16_ROUNDING = 2**-8


class Job:
    """A base as its publisher gives it, and a model that has learned something since."""

    def __init__(self, root, variant, method="Full", dtype=torch.bfloat16, odd=None, **changes):
        self.paths, self.base = paths_with_base(root)
        a_directory(self.base, a_model(variant), dtype, odd or {})
        self.config = a_config(**{"method": METHODS[method]} | changes)
        self.vault = data_vault(self.config, self.paths)
        prepare_model(self.config, self.paths, self.vault)
        loaded = load_model(self.config, self.paths, self.vault, CPU)
        self.model = trainable(loaded, self.config.method, 0, CPU, torch.float32).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in trainable_parameters(self.model):
                weight.add_(0.02 * torch.randn_like(weight))

    def export(self):
        task = LanguageTask(self.config, self.paths, self.vault, self.paths.prepared)
        task.tokenizer = a_tokenizer()
        return export(self.model, task, self.config, self.paths, RESULTS)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(24)[None] % VOCAB).logits


def loaded_without_a_word(target, **settings):
    model, told = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True, **settings)
    assert not any(told[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model


def types_and_shapes(directory):
    return {name: (each.dtype, each.shape) for name, each in load_file(directory / "model.safetensors").items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_export_loads_with_plain_transformers_and_answers_as_the_trained_model(tmp_path, variant, method):
    job = Job(tmp_path, variant, method)
    before = logits(job.model)
    target = job.export()
    assert types_and_shapes(target) == types_and_shapes(job.base), "names, shapes and types of the base's own files"
    model = loaded_without_a_word(target)
    assert model.dtype is torch.bfloat16
    after = logits(model.float())
    assert (after - before).abs().max() < 16 * BF16_ROUNDING * before.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_export_in_the_type_of_training_has_the_very_logits_of_the_trained_model(tmp_path, variant):
    job = Job(tmp_path, variant, export={"dtype": "FP32"})
    target = job.export()
    assert torch.equal(logits(loaded_without_a_word(target)), logits(job.model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_loads_with_plain_peft_on_the_base_itself(tmp_path, variant):
    job = Job(tmp_path, variant, "LoRA", torch.float32, export={"formats": ["Adapter"]})
    before = logits(job.model)
    target = job.export()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(job.base), target / "adapter")
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("asked", ["Same", "FP32", "BF16", "FP16"])
@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_weights_are_stored_as_the_job_asks_and_config_json_says_so(tmp_path, stored, asked):
    job = Job(tmp_path, "llama", dtype=getattr(torch, stored), export={"dtype": asked})
    target = job.export()
    wanted = {"Same": stored, "FP32": "float32", "BF16": "bfloat16", "FP16": "float16"}[asked]
    assert {each.dtype for each in load_file(target / "model.safetensors").values()} == {getattr(torch, wanted)}
    assert json.loads((target / "config.json").read_text())["dtype"] == wanted


def test_a_weight_that_the_base_stores_otherwise_than_the_rest_stays_so(tmp_path):
    job = Job(tmp_path, "llama", odd={"model.norm.weight": torch.float32})
    target = job.export()
    assert types_and_shapes(target)["model.norm.weight"][0] is torch.float32
    assert types_and_shapes(target) == types_and_shapes(job.base)


def test_weights_that_fp16_cannot_hold_are_refused(tmp_path):
    job = Job(tmp_path, "llama", export={"dtype": "FP16"})
    with torch.no_grad():
        job.model.lm_head.weight[0, 0] = 70000
    with pytest.raises(NotFiniteError, match=r"lm_head.weight has weights beyond 65,504.*export.dtype: BF16 or FP32"):
        job.export()


def test_what_the_base_says_of_itself_stays_and_what_it_lacks_is_added(tmp_path):
    job = Job(tmp_path, "llama", "LoRA")
    base, target = json.loads((job.base / "config.json").read_text()), job.export()
    ours = a_tokenizer()
    added = {"bos_token_id": ours.bos_token_id, "pad_token_id": ours.pad_token_id}
    assert json.loads((target / "config.json").read_text()) == base | added
    told = json.loads((target / "generation_config.json").read_text())
    stops = [1, 7] if ours.eos_token_id in (1, 7) else [1, 7, ours.eos_token_id]
    assert told == {"temperature": 0.6, "eos_token_id": stops} | added
    assert (target / "LICENSE.txt").read_text() == "take it and be kind"
