"""An adapter that is added to its base while that is prepared, against peft's own merge."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from deepseek_trainer.base_model.digest import digest_of
from deepseek_trainer.base_model.source import base_digest, prepare_model, read_source
from deepseek_trainer.base_model.tokenizer_files import files_of
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.method import LoraSpec
from deepseek_trainer.model.adapters import adapter_settings, adapter_state, with_adapters
from deepseek_trainer.model.adapters import merged as merged_as_exported
from deepseek_trainer.model.loading import load_base
from deepseek_trainer.worker.vaults import data_vault
from support.builders.families import a_directory as a_family
from support.builders.families import a_model
from support.builders.model import a_batch, a_config, a_gguf, a_tokenizer, paths_with_base, quantized, tiny_model

TOKENIZER = a_tokenizer()
EVERYWHERE = LoraSpec(rank=4, alpha=8, dropout=0.0, target_modules=("all-linear",))


def with_adapter(**changes):
    base, adapter = {"claimName": "models", "path": "base"}, {"claimName": "models", "path": "adapter"}
    return a_config(model={"base": base, "adapter": adapter | changes})


def a_base(root, model):
    paths, base = paths_with_base(root)
    model.save_pretrained(base)
    for name, content in files_of(TOKENIZER).items():
        (base / name).write_bytes(content)
    return paths, base.parent / "adapter"


def an_adapter(directory, model, **settings):
    """One that makes a difference, written by peft beside the model that it is for."""
    given = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]} | settings
    adapted = get_peft_model(model, LoraConfig(**given))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(directory, save_embedding_layers=False)
    return directory


def merged(model, directory):
    return PeftModel.from_pretrained(model, directory).merge_and_unload()


def prepared(config, paths):
    vault = data_vault(config, paths)
    return prepare_model(config, paths, vault), vault


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=a_batch().tokens_BT).logits


def refused(paths, error=ConfigError, **changes):
    with pytest.raises(error) as caught:
        prepared(with_adapter(**changes), paths)
    assert not paths.prepared.exists() or not list(paths.prepared.iterdir()), "nothing was left behind"
    return str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": "all-linear"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prepared_model_answers_as_what_peft_merges(tmp_path, settings, dtype):
    paths, adapter = a_base(tmp_path, tiny_model().to(dtype))
    an_adapter(adapter, tiny_model(), **settings)
    directory, vault = prepared(with_adapter(), paths)
    ours, plain = load_base(directory, vault), load_base(*prepared(a_config(), paths))
    theirs = merged(tiny_model().to(dtype).float(), adapter)
    tolerance = 1e-4 if dtype is torch.float32 else 0.3
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=tolerance)
    assert (logits(ours) - logits(plain)).abs().max() > 2 * tolerance, "the adapter makes a difference"
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name].float(), weight.to(dtype).float(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "deepseek_v3", "qwen2_moe", "mixtral"])
def test_adapter_that_a_job_has_trained_fits_its_family_again(tmp_path, family):
    paths, base = paths_with_base(tmp_path)
    a_family(base, a_model(family), torch.float32)
    vault = data_vault(a_config(), paths)
    adapted = with_adapters(load_base(prepare_model(a_config(), paths, vault), vault), EVERYWHERE, seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter = base.parent / "adapter"
    adapter.mkdir()
    save_file(adapter_state(adapted), adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps(adapter_settings(adapted)))
    theirs = merged_as_exported(adapted)
    ours = load_base(*prepared(with_adapter(), paths))
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-3)
    assert (logits(ours) - logits(a_model(family))).abs().max() > 0.05, "the adapter makes a difference"


def test_adapter_is_added_to_a_gguf_model(tmp_path):
    paths, base = paths_with_base(tmp_path)
    a_gguf(base, tiny_model(), TOKENIZER)
    adapter = an_adapter(base.parent / "adapter", quantized(tiny_model()))
    theirs = merged(quantized(tiny_model()), adapter)
    torch.testing.assert_close(logits(load_base(*prepared(with_adapter(), paths))), logits(theirs), rtol=0, atol=1e-4)


def test_digest_of_the_weights_origin_knows_the_adapter(tmp_path):
    paths, adapter = a_base(tmp_path, tiny_model())
    an_adapter(adapter, tiny_model())
    directory, vault = prepared(with_adapter(sha256=digest_of(adapter)), paths)
    source = read_source(directory, vault)
    assert source.adapter == {"sha256": digest_of(adapter), "claimName": "models", "path": "adapter"}
    prepared(a_config(), paths)
    assert base_digest(with_adapter(sha256=digest_of(adapter)), paths, vault) != base_digest(a_config(), paths, vault)
    assert base_digest(a_config(), paths, vault) == source.sha256


def test_adapter_of_another_digest_is_refused(tmp_path):
    paths, adapter = a_base(tmp_path, tiny_model())
    an_adapter(adapter, tiny_model())
    assert "model.adapter models/adapter: SHA-256 is" in refused(paths, IntegrityError, sha256="0" * 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3': LORA alone is read"),
        ({"modules_to_save": ["lm_head"]}, r"'modules_to_save' is \['lm_head'\], which is not read"),
        ({"bias": "all"}, "'bias' is 'all', which is not read"),
        ({"target_parameters": ["mlp.experts"]}, "'target_parameters' is"),
        ({"a_setting_of_tomorrow": 3}, "'a_setting_of_tomorrow' is 3, which is not read"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": []}, "init_lora_weights is"),
        ({"r": 8}, "by adapter_config.json the rank is 8"),
        ({"r": "four"}, "r is 'four', and must be a number above 0"),
        ({"rank_pattern": {"(a+)+": 8}}, "rank_pattern is"),
        ({"use_dora": True}, "by adapter_config.json it has lora_A, lora_B, lora_magnitude_vector"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "lacks model.layers.0.self_attn.o_proj"),
        ({"target_modules": ["q_proj", "c_attn"]}, "target_modules has 'c_attn', and model.base has no such layer"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_honoured_are_refused(tmp_path, settings, message):
    paths, adapter = a_base(tmp_path, tiny_model())
    an_adapter(adapter, tiny_model())
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(ConfigError, match=message):
        prepared(with_adapter(), paths)


@pytest.mark.parametrize(
    ("other", "settings", "message"),
    [
        ({"num_hidden_layers": 3}, {}, "layer model.layers.2.self_attn.q_proj, which model.base does not have"),
        ({"hidden_size": 48}, {}, "is for a model.layers.0.self_attn.q_proj of 32 x 48, that of model.base is 32 x 32"),
        ({}, {"target_modules": ["lm_head"]}, "lm_head, which is the same as the embedding"),
        ({}, {"target_modules": ["embed_tokens"]}, "no part of a linear layer's adapter"),
    ],
    ids=str,
)
def test_adapter_of_another_model_is_refused(tmp_path, other, settings, message):
    paths, adapter = a_base(tmp_path, tiny_model())
    an_adapter(adapter, tiny_model(**other), **settings)
    assert message in refused(paths)


def pointer(adapter):
    (adapter / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def pickle_only(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def cut(adapter):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def not_json(adapter):
    (adapter / "adapter_config.json").write_text("{")


def a_list(adapter):
    (adapter / "adapter_config.json").write_text("[]")


def whole_model(adapter):
    (adapter / "adapter_config.json").rename(adapter / "config.json")


def sealed(adapter):
    (adapter / "adapter_config.json").rename(adapter / "adapter_config.json.sealed")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pointer, "adapter_model.safetensors is a Git LFS pointer"),
        (pickle_only, "has no adapter_model.safetensors, but adapter_model.bin, a pickle"),
        (cut, "adapter_model.safetensors is not a safetensors file, or is cut short"),
        (not_json, "adapter_config.json is not JSON"),
        (a_list, "adapter_config.json is not a JSON object"),
        (whole_model, "has no adapter_config.json: it is a whole model (hint: give it as model.base"),
        (sealed, "is sealed"),
    ],
)
def test_directory_that_is_no_adapter_is_refused_for_what_it_is(tmp_path, spoil, message):
    paths, adapter = a_base(tmp_path, tiny_model())
    spoil(an_adapter(adapter, tiny_model()))
    assert message in refused(paths)


def test_missing_adapter_is_refused_with_what_is_there(tmp_path):
    paths, _ = a_base(tmp_path, tiny_model())
    assert "model.adapter: claim models has no adapter" in refused(paths)
