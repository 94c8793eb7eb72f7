import json
import shutil

import pytest
import safetensors.torch
import torch

from deepseek_trainer.base_model.digest import digest_of
from deepseek_trainer.base_model.headers import refuse_other_weights
from deepseek_trainer.base_model.source import prepare_model, read_source
from deepseek_trainer.base_model.tokenizer_files import files_of, load_tokenizer
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.model.loading import load_base, load_model
from deepseek_trainer.worker.vaults import data_vault
from support.builders.model import (
    a_batch,
    a_config,
    a_gguf,
    a_tokenizer,
    paths_with_base,
    quantized,
    sealed,
    tiny_model,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return a_tokenizer()


def a_directory(base, tokenizer, **changes):
    """A model directory as transformers writes it; `changes` go into its config.json."""
    tiny_model().save_pretrained(base)
    for name, content in files_of(tokenizer).items():
        (base / name).write_bytes(content)
    if changes:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | changes))


def prepared(config, paths):
    vault = data_vault(config, paths)
    return prepare_model(config, paths, vault), vault


def with_digest(digest):
    return a_config(model={"base": {"claimName": "models", "path": "base", "sha256": digest}})


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=a_batch().tokens_BT).logits


def refused(paths, config=None):
    """The message of the ConfigError, after checking that nothing was left behind."""
    with pytest.raises(ConfigError) as caught:
        prepared(config or a_config(), paths)
    assert not paths.prepared.exists() or not list(paths.prepared.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_gguf_model_answers_as_the_model_it_was_made_from(tmp_path, tokenizer, kind):
    paths, base = paths_with_base(tmp_path)
    model = tiny_model(kind)
    a_gguf(base, model, tokenizer)
    prepared(a_config(), paths)
    loaded = load_model(a_config(), paths, data_vault(a_config(), paths), CPU)
    assert loaded.training
    assert torch.equal(logits(loaded), logits(quantized(model)))


def test_untied_gguf_model_keeps_its_own_output_weights(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    model = tiny_model(tie_word_embeddings=False)
    a_gguf(base, model, tokenizer)
    directory, vault = prepared(a_config(), paths)
    assert torch.equal(logits(load_base(directory, vault)), logits(quantized(model)))


def test_gguf_tokenizer_gives_the_same_tokens_as_the_one_it_was_made_from(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    a_gguf(base, tiny_model(), tokenizer, **{"tokenizer.chat_template": "{{ messages[0]['content'] }}"})
    converted = load_tokenizer(*prepared(a_config(), paths))
    text = "The pump-101 runs at 3.5 bar <|end|>\n\n  größe"
    assert converted(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert converted.decode(converted(text)["input_ids"]) == text
    assert converted.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert (converted.eos_token_id, converted.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_directory_is_loaded_as_it_was_saved(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    directory, vault = prepared(a_config(), paths)
    assert torch.equal(logits(load_base(directory, vault)), logits(tiny_model()))
    assert read_source(directory, vault).sha256 == digest_of(base)


@pytest.mark.parametrize("make", [a_directory, lambda base, tokenizer: a_gguf(base, tiny_model(), tokenizer)])
def test_sealed_job_leaves_nothing_of_the_model_in_the_clear(tmp_path, tokenizer, make):
    paths, base = paths_with_base(tmp_path)
    make(base, tokenizer)
    config = a_config(checkpoint=sealed(paths))
    directory, vault = prepared(config, paths)
    assert load_model(config, paths, vault, CPU).num_parameters() == tiny_model().num_parameters()
    files = list(directory.iterdir())
    assert {path.suffix for path in files} == {".sealed"}
    assert not any(b"embed_tokens" in path.read_bytes() or b"merges" in path.read_bytes() for path in files)


def test_prepared_model_that_was_tampered_with_is_refused(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    config = a_config(checkpoint=sealed(paths))
    directory, vault = prepared(config, paths)
    weights = directory / "model.safetensors.sealed"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_base(directory, vault)


def test_directory_of_several_shards_is_loaded_as_a_whole(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    (base / "model.safetensors").unlink()
    tiny_model().save_pretrained(base, max_shard_size="20KB")
    (base / "consolidated.safetensors").write_bytes(b"not listed by the index")
    directory, vault = prepared(a_config(), paths)
    assert len(read_source(directory, vault).weights) > 2
    assert torch.equal(logits(load_base(directory, vault)), logits(tiny_model()))


def test_model_is_loaded_in_the_wanted_dtype(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    _, vault = prepared(a_config(), paths)
    assert load_model(a_config(), paths, vault, CPU, torch.bfloat16).dtype is torch.bfloat16


def test_model_is_prepared_once(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    first, _ = prepared(a_config(), paths)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    again, _ = prepared(a_config(), paths)
    assert again == first
    assert {path.name: path.stat().st_mtime_ns for path in again.iterdir()} == stamps


def test_changed_source_is_prepared_anew(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    first, _ = prepared(a_config(), paths)
    tiny_model(seed=1).save_pretrained(base)
    second, vault = prepared(a_config(), paths)
    assert second != first
    assert torch.equal(logits(load_base(second, vault)), logits(tiny_model(seed=1)))


@pytest.mark.parametrize("make", [a_directory, lambda base, tokenizer: a_gguf(base, tiny_model(), tokenizer)])
def test_right_digest_is_accepted_and_a_wrong_one_refused(tmp_path, tokenizer, make):
    paths, base = paths_with_base(tmp_path)
    make(base, tokenizer)
    digest = digest_of(base)
    prepared(with_digest(digest), paths)
    shutil.rmtree(paths.prepared)
    with pytest.raises(IntegrityError, match=f"models/base: SHA-256 is {digest}, the job expects {'0' * 64}"):
        prepared(with_digest("0" * 64), paths)
    assert list(paths.prepared.iterdir()) == []


def test_sealed_job_is_not_told_the_digest_of_another_base(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    config = with_digest("0" * 64).model_copy(update={"checkpoint": a_config(checkpoint=sealed(paths)).checkpoint})
    with pytest.raises(IntegrityError, match=f"SHA-256 is another one, the job expects {'0' * 64}"):
        prepared(config, paths)


def test_missing_model_is_refused_with_its_claim_and_what_lies_beside(tmp_path):
    paths, base = paths_with_base(tmp_path)
    (base.parent / "bse").mkdir()
    message = refused(paths)
    assert f"claim models has no base: {base} does not exist" in message
    assert f"{base.parent} holds bse" in message


def test_missing_claim_is_refused(tmp_path):
    paths, base = paths_with_base(tmp_path)
    base.parent.rmdir()
    assert "claim models" in refused(paths)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
        (lambda base: (base / "model.safetensors").unlink(), r"no \*.safetensors"),
        (lambda base: (base / "config.json").unlink(), "has no config.json"),
        (lambda base: (base / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda base: (base / "config.json").write_text("[]"), "config.json is not a JSON object"),
        (lambda base: (base / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda base: (base / "tokenizer.json").write_text("{}"), "tokenizer cannot be read"),
        (lambda base: (base / "tokenizer_config.json").write_text('{"auto_map": {}}'), "code of its own"),
        (
            lambda base: (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
            "lacks b.safetensors",
        ),
    ],
)
def test_incomplete_directory_is_refused(tmp_path, tokenizer, spoil, message):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    spoil(base)
    with pytest.raises(ConfigError, match=message):
        prepared(a_config(), paths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "is a mamba model"),
        ({"auto_map": {"AutoModel": "evil.py"}, "architectures": ["Evil"]}, "code of its own (auto_map)"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
        ({"vocab_size": 100}, "the model has 100 embeddings"),
    ],
)
def test_directory_that_cannot_be_trained_is_refused(tmp_path, tokenizer, changes, message):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer, **changes)
    assert message in refused(paths)


def test_prepared_weights_that_do_not_fit_their_configuration_are_refused(tmp_path, tokenizer):
    """Those that an earlier version prepared."""
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    directory, vault = prepared(a_config(), paths)
    config = directory / "config.json"
    config.chmod(0o600)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"missing keys model\.layers\.2"):
        load_base(directory, vault)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 300},
            "model.safetensors: model.embed_tokens.weight has shape 288 x 32, by config.json it is 300 x 32",
        ),
        ({"intermediate_size": 48}, "mlp.down_proj.weight has shape 32 x 64, by config.json it is 32 x 48"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2.input_layernorm.weight, which config.json asks for"),
        ({"num_hidden_layers": 1}, "model.safetensors has model.layers.1.input_layernorm.weight, of which config.json"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
        ({"attention_bias": True}, "lacks model.layers.0.self_attn.k_proj.bias"),
        ({"model_type": "qwen3"}, "lacks model.layers.0.self_attn.k_norm.weight"),
    ],
)
def test_weights_that_do_not_fit_their_configuration_are_refused_while_preparing(tmp_path, tokenizer, changes, message):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer, **changes)
    refusal = refused(paths)
    assert message in refusal
    assert refusal.endswith("(hint: take config.json and all weights, and nothing else, from one release of the model)")


def test_adapters_that_lie_beside_the_weights_are_refused_while_preparing(tmp_path, tokenizer):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    (base / "adapter_model.safetensors").write_bytes(
        safetensors.torch.save({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)})
    )
    assert "adapter_model.safetensors has base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in (
        refused(paths)
    )
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "model.safetensors"}}')
    assert torch.equal(logits(load_base(*prepared(a_config(), paths))), logits(tiny_model()))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{", b"not a file of weights"])
def test_a_file_of_weights_that_is_none_is_refused_while_preparing(tmp_path, tokenizer, content):
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    (base / "model.safetensors").write_bytes(content)
    assert "model.safetensors is not a safetensors file, or is cut short" in refused(paths)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"attention_bias": True, "mlp_bias": True}])
def test_weights_of_every_family_fit_their_own_configuration(tmp_path, kind, changes):
    model = tiny_model(kind, **changes)
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    refuse_other_weights(
        tmp_path, {name: ("model.safetensors", shape) for name, shape in names.items()}, model.config.to_dict()
    )


def test_what_old_releases_saved_beside_the_weights_is_passed_over(tmp_path):
    model = tiny_model()
    found = {name: ("a", tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("a", (4,))
    refuse_other_weights(tmp_path, found, model.config.to_dict())


def test_pickle_file_is_refused_before_it_is_read(tmp_path):
    paths, _ = paths_with_base(tmp_path)
    paths.claim("models", "model.pt").write_bytes(b"\x80\x04.")
    config = a_config(model={"base": {"claimName": "models", "path": "model.pt"}})
    assert "model.pt is a pickle, which runs code when it is loaded" in refused(paths, config)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "scales its rotary positions"),
        ({"tokenizer.ggml.pre": "viking"}, "has a gpt2/viking tokenizer"),
    ],
)
def test_gguf_variant_that_we_would_get_wrong_is_refused(tmp_path, tokenizer, metadata, message):
    paths, base = paths_with_base(tmp_path)
    a_gguf(base, tiny_model(), tokenizer, **metadata)
    assert message in refused(paths)


@pytest.mark.parametrize("size", [0, 3, 20, 5000, -1])
def test_gguf_file_that_is_cut_short_is_refused(tmp_path, tokenizer, size):
    paths, base = paths_with_base(tmp_path)
    a_gguf(base, tiny_model(), tokenizer)
    base.write_bytes(base.read_bytes()[:size])
    assert "cut short or malformed at byte" in refused(paths)


def test_gguf_file_of_something_else_is_refused(tmp_path):
    paths, base = paths_with_base(tmp_path)
    base.write_bytes(b"PK\x03\x04 a zip file")
    assert "is not a GGUF file" in refused(paths)


MISFITS = {
    "sequence": (
        {"data": {"train": {"claimName": "data"}, "sequenceLength": 129}},
        "data.sequenceLength=129 is longer than the base model's 128 positions "
        "(hint: lower data.sequenceLength to 128, or take a model for longer texts)",
    ),
    "adapters": (
        {"method": {"type": "LoRA", "lora": {"targetModules": ["q_proj", "c_attn"]}}},
        "method.lora.targetModules: the model has no linear layer c_attn "
        "(hint: it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj)",
    ),
    "blocks": (
        {"method": {"type": "QLoRA"}},
        "method.type QLoRA keeps weights in blocks of 64, and the model's q_proj has 32 inputs "
        "(hint: set method.type: LoRA)",
    ),
}


@pytest.mark.parametrize("make", [a_directory, lambda base, tokenizer: a_gguf(base, tiny_model(), tokenizer)])
@pytest.mark.parametrize("name", MISFITS)
def test_base_that_the_job_cannot_train_is_refused_while_preparing(tmp_path, tokenizer, make, name):
    changes, message = MISFITS[name]
    paths, base = paths_with_base(tmp_path)
    make(base, tokenizer)
    assert refused(paths, a_config(**changes)) == message


@pytest.mark.parametrize("name", MISFITS)
def test_base_that_was_prepared_before_is_held_to_the_job_too(tmp_path, tokenizer, name):
    changes, message = MISFITS[name]
    paths, base = paths_with_base(tmp_path)
    a_directory(base, tokenizer)
    prepared(a_config(), paths)
    with pytest.raises(ConfigError) as caught:
        prepared(a_config(**changes), paths)
    assert str(caught.value) == message
