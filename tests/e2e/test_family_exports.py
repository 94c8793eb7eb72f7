"""Exports of every family as plain transformers loads them: no key too many or too few, and the answers of training."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deepseek_trainer.base_model.families import FAMILIES
from deepseek_trainer.base_model.source import prepare_model
from deepseek_trainer.contract.errors import NotFiniteError
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.model.loading import load_model, trainable_parameters
from deepseek_trainer.model.method import trainable
from deepseek_trainer.result.export import Results, export
from deepseek_trainer.tasks.language.task import LanguageTask
from deepseek_trainer.worker.vaults import data_vault
from support.builders.families import SPARSE, VARIANTS, a_directory, a_model, model_type_of
from support.builders.model import VOCAB, a_config, a_tokenizer, paths_with_base

CPU = torch.device("cpu")
RESULTS = Results(events=[], weights="of step 1", step=1, requested=MethodType.FULL)
METHODS = {
    "Full": {},
    "LoRA": {"type": "LoRA", "lora": {"rank": 2, "dropout": 0, "targetModules": ["all-linear"]}},
    "QLoRA": {"type": "QLoRA", "lora": {"rank": 2, "dropout": 0, "targetModules": ["all-linear"]}},
}
LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
METHODS["Latent"] = {"type": "LoRA", "lora": {"rank": 2, "dropout": 0, "targetModules": LATENT}}
BF16_ROUNDING = 2**-8
FAMILIES_OF_TEXT = [
    variant for variant in VARIANTS | SPARSE if model_type_of(variant) == variant
]  # windows are not exported


class Base:
    """One as its publisher gives it, prepared."""

    def __init__(self, root, variant, dtype=torch.bfloat16, odd=None, rewrite=lambda _: None):
        self.paths, self.path = paths_with_base(root)
        a_directory(self.path, a_model(variant), dtype, odd or {})
        rewrite(self.path)
        config = a_config(method={})
        self.vault = data_vault(config, self.paths)
        prepare_model(config, self.paths, self.vault)
        self.family = FAMILIES[model_type_of(variant)]

    def exported(self, method="Full", change=lambda _: None, **export_spec):
        """The result, and the model that has learned something before."""
        config = a_config(method=METHODS[method], export=export_spec)
        loaded = load_model(config, self.paths, self.vault, CPU)
        model = trainable(loaded, config.method, 0, CPU, torch.float32).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in trainable_parameters(model):
                weight.add_(0.02 * torch.randn_like(weight))
            change(model)
        trained = copy.deepcopy(model)
        task = LanguageTask(config, self.paths, self.vault, self.paths.prepared)
        task.tokenizer = a_tokenizer()
        return export(model, task, config, self.paths, RESULTS), trained


@pytest.fixture(scope="module", params=FAMILIES_OF_TEXT)
def base(request, tmp_path_factory):
    return Base(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture
def llama(tmp_path):
    return Base(tmp_path, "llama")


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(24)[None] % VOCAB).logits


def loaded_without_a_word(target, **settings):
    model, told = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True, **settings)
    assert not any(told[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model


def types_and_shapes(directory):
    return {name: (each.dtype, each.shape) for name, each in load_file(directory / "model.safetensors").items()}


def rounded(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def close(found, wanted, family):
    """Rounding may bring a token between two experts to the other one."""
    of_tokens = (found - wanted).abs().amax(-1)
    return (of_tokens.median() if family.experts else of_tokens.max()) < 16 * BF16_ROUNDING * wanted.abs().max()


def test_an_export_is_like_the_base_and_answers_as_the_trained_model_rounded(base):
    target, trained = base.exported()
    assert types_and_shapes(target) == types_and_shapes(base.path), "names, shapes and types of the base's own files"
    assert loaded_without_a_word(target).dtype is torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert torch.equal(logits(model), logits(rounded(trained)))


def test_merged_adapters_and_adapters_alone_answer_as_the_trained_model(base):
    target, trained = base.exported(
        "Latent" if "kv_b_proj" in str(base.family.linear) else "LoRA", formats=["Merged", "Adapter"]
    )
    assert types_and_shapes(target) == types_and_shapes(base.path)
    assert close(logits(loaded_without_a_word(target, dtype=torch.float32)), logits(trained), base.family)
    plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, target / "adapter")
    torch.testing.assert_close(logits(adapted), logits(trained), rtol=1e-5, atol=1e-5)


def test_adapters_on_four_bits_are_merged_into_the_base_s_own_layout(base):
    if base.family.is_transposed:
        pytest.skip("refused: see test_families.py")
    target, trained = base.exported("QLoRA")
    assert types_and_shapes(target) == types_and_shapes(base.path)
    assert close(logits(loaded_without_a_word(target, dtype=torch.float32)), logits(trained), base.family)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_weights_are_stored_as_the_job_asks_and_config_json_says_so(tmp_path, stored):
    base = Base(tmp_path, "llama", getattr(torch, stored))
    for asked, wanted in (("Same", stored), ("FP32", "float32"), ("BF16", "bfloat16"), ("FP16", "float16")):
        target, _ = base.exported(dtype=asked)
        assert {each.dtype for each in load_file(target / "model.safetensors").values()} == {getattr(torch, wanted)}
        assert json.loads((target / "config.json").read_text())["dtype"] == wanted


def test_an_export_in_the_type_of_training_has_the_very_logits_of_the_trained_model(llama):
    target, trained = llama.exported(dtype="FP32")
    assert torch.equal(logits(loaded_without_a_word(target)), logits(trained))


def test_a_weight_that_the_base_stores_otherwise_than_the_rest_stays_so(tmp_path):
    base = Base(tmp_path, "llama", odd={"model.norm.weight": torch.float32})
    target, _ = base.exported()
    assert types_and_shapes(target)["model.norm.weight"][0] is torch.float32
    assert types_and_shapes(target) == types_and_shapes(base.path)


def test_weights_that_fp16_cannot_hold_are_refused(llama):
    def enlarge(model):
        model.lm_head.weight[0, 0] = 70000

    with pytest.raises(NotFiniteError, match=r"lm_head.weight has weights beyond 65,504.*export.dtype: BF16 or FP32"):
        llama.exported(change=enlarge, dtype="FP16")


def test_what_the_base_says_of_itself_stays_and_what_it_lacks_is_added(llama):
    target, _ = llama.exported("LoRA")
    ours = a_tokenizer()
    added = {"bos_token_id": ours.bos_token_id, "pad_token_id": ours.pad_token_id}
    base = json.loads((llama.path / "config.json").read_text())
    assert json.loads((target / "config.json").read_text()) == base | added
    told = json.loads((target / "generation_config.json").read_text())
    stops = [1, 7] if ours.eos_token_id in (1, 7) else [1, 7, ours.eos_token_id]
    assert told == {"temperature": 0.6, "eos_token_id": stops} | added
    assert (target / "LICENSE.txt").read_text() == "take it and be kind"


def test_gpt2_as_it_was_first_given_is_trained_and_exported_as_transformers_saves_it(tmp_path):
    """Names without the model's own prefix, and buffers that mean nothing."""
    base = Base(tmp_path, "gpt2", rewrite=as_first_given)
    target, trained = base.exported()
    found, given = types_and_shapes(target), types_and_shapes(base.path)
    known = {name: each for name, each in given.items() if not name.endswith((".attn.bias", ".masked_bias"))}
    assert found == {f"transformer.{name}": each for name, each in known.items()}
    model = loaded_without_a_word(target, dtype=torch.float32)
    assert torch.equal(logits(model), logits(rounded(trained)))


def as_first_given(directory):
    weights = load_file(directory / "model.safetensors")
    old = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    for block in ("h.0", "h.1"):
        old |= {f"{block}.attn.bias": torch.ones(1, 1, 8, 8), f"{block}.attn.masked_bias": torch.tensor(-1e4)}
    save_file(old, directory / "model.safetensors", metadata={"format": "pt"})
