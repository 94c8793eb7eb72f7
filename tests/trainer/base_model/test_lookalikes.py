"""What people bring in place of a base model: each is named for what it is, with a way out, before it is read."""

import json
import shutil
import struct
from contextlib import suppress
from types import SimpleNamespace

import pytest

from deepseek_trainer.base_model import directory
from deepseek_trainer.base_model.digest import digest_of
from deepseek_trainer.base_model.families import FAMILIES
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.base_model.source import source_model
from deepseek_trainer.base_model.tokenizer_files import files_of, tokenizer_from
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.model import BaseModelSource
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.tokenizer import documents
from support.builders.model import a_config, a_tokenizer, paths_with_base

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134\n"
MAIN, OTHER = "a" * 40, "b" * 40
SETTINGS = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


def safetensors(shapes, dtype="F32", size=4):
    header, at = {}, 0
    for name, shape in shapes.items():
        count = size
        for each in shape:
            count *= each
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's directory, made without torch."""
    directory = tmp_path_factory.mktemp("model")
    (directory / "config.json").write_text(json.dumps(SETTINGS))
    (directory / "model.safetensors").write_bytes(safetensors(FAMILIES["llama"].weights(SETTINGS)))
    for name, content in files_of(a_tokenizer()).items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def base(tmp_path, model):
    """A copy of it on a claim, and what becomes of it."""
    paths, directory = paths_with_base(tmp_path)
    shutil.copytree(model, directory)
    return SimpleNamespace(paths=paths, directory=directory)


def found(base, path="base"):
    return source_model(Place.find(BaseModelSource(claimName="models", path=path), base.paths))


def refusal(base, path="base"):
    with pytest.raises(ConfigError) as caught:
        found(base, path)
    assert caught.value.hint
    assert str(caught.value).isprintable()
    return str(caught.value)


def only(directory, *names):
    """Leave nothing but empty files of these names."""
    shutil.rmtree(directory)
    directory.mkdir()
    for name in names:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")


def changed(directory, name="config.json", **changes):
    path = directory / name
    kept = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not ...}
    path.write_text(json.dumps(kept))


def test_the_model_itself_is_taken(base):
    assert found(base)[0] == SETTINGS


FORMS = {
    "an adapter": (("adapter_config.json", "adapter_model.safetensors"), "is a LoRA adapter", "model.adapter"),
    "an adapter with a tokenizer": (("adapter_config.json", "adapter_model.bin", "tokenizer.json"), "LoRA", "trained"),
    "a sealed export": (("config.json.sealed", "model.safetensors.sealed"), "has sealed", "dstj result decrypt"),
    "deepspeed": (("latest", "zero_to_fp32.py", "global_step8/x"), "checkpoint of DeepSpeed", "zero_to_fp32.py"),
    "deepspeed's states": (("mp_rank_00_model_states.pt",), "checkpoint of DeepSpeed", "zero_to_fp32.py"),
    "fsdp": (("pytorch_model_fsdp_0/__0_0.distcp",), "checkpoint of FSDP", "merge-weights"),
    "fsdp's pieces": (("__0_0.distcp", ".metadata"), "checkpoint of FSDP", "merge-weights"),
    "consolidated": (("consolidated.safetensors", "params.json"), "Mistral's own programs", "same release"),
    "consolidated with config": (("consolidated.safetensors", "config.json"), "Mistral's own programs", "same release"),
    "meta": (("consolidated.00.pth", "params.json", "tokenizer.model"), "Meta's own programs", "convert_llama"),
    "gguf": (("x.Q4_K_M.gguf", "README.md"), "holds GGUF files", "by its name with .gguf"),
    "gguf with config": (("x.gguf", "config.json"), "holds GGUF files", "by its name with .gguf"),
    "onnx": (("config.json", "onnx/model.onnx"), "ONNX", "safetensors"),
    "onnx beside": (("config.json", "model.onnx", "tokenizer.json"), "ONNX", "safetensors"),
    "mlx": (("config.json", "weights.npz"), "MLX", "safetensors"),
    "tensorflow": (("config.json", "tf_model.h5"), "TensorFlow", "safetensors"),
    "flax": (("config.json", "flax_model.msgpack"), "Flax", "safetensors"),
    "nemo": (("model.nemo",), "NeMo", "safetensors"),
    "diffusers": (("model_index.json", "unet/x"), "diffusers", "own directory"),
    "bin": (("config.json", "pytorch_model.bin"), "pytorch_model.bin is a pickle", "save_pretrained"),
    "pt": (("model.pt",), "model.pt is a pickle", "save_pretrained"),
    "ckpt": (("last.ckpt",), "last.ckpt is a pickle", "save_pretrained"),
    "trainer": (("config.json", "trainer_state.json"), "checkpoint of HF Trainer", "save_model"),
    "tokenizer": (("tokenizer.json", "tokenizer_config.json"), "holds a tokenizer alone", "own directory"),
    "nothing": ((), "has no *.safetensors", "model.base.path"),
    "no config": (("model.safetensors", "tokenizer.json"), "has no config.json", "own directory"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_directory_of_another_form_is_named_for_what_it_is(base, form):
    names, what, way_out = FORMS[form]
    only(base.directory, *names)
    message = refusal(base)
    assert what in message
    assert way_out in message


def test_a_checkpoint_of_hf_trainer_that_is_a_whole_model_is_taken(base):
    for name in ("trainer_state.json", "optimizer.pt", "training_args.bin", "rng_state.pth"):
        (base.directory / name).write_text("{}")
    assert found(base)[0] == SETTINGS


def test_copies_of_the_weights_for_other_programs_are_passed_over(base):
    (base.directory / "consolidated.safetensors").write_bytes(safetensors({"layers.0.wq": (2, 2)}))
    (base.directory / "model.onnx").write_text("")
    (base.directory / "x.gguf").write_text("")
    assert found(base)[0] == SETTINGS


@pytest.mark.parametrize("extra", [(), ("training_args.bin",), ("README.md", "tokenizer.json")])
def test_a_directory_with_models_one_level_deeper_asks_for_them(base, model, extra):
    only(base.directory, *extra)
    shutil.copytree(model, base.directory / "checkpoint-8")
    assert "did you mean model.base.path: .../base/checkpoint-8?" in refusal(base)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
def test_a_git_lfs_pointer_is_named(base, name):
    (base.directory / name).write_text(POINTER)
    message = refusal(base)
    assert f"'{name}': a Git LFS pointer" in message
    assert "git lfs pull" in message


def test_a_pointer_in_place_of_a_gguf_file_is_named(base):
    (base.directory / "x.gguf").write_text(POINTER)
    assert "'x.gguf': a Git LFS pointer" in refusal(base, "base/x.gguf")


def test_a_web_page_in_place_of_a_file_is_named(base):
    (base.directory / "model.safetensors").write_text("\n<!DOCTYPE html><html>Log in</html>")
    assert "'model.safetensors': a web page" in refusal(base)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_file_of_a_model_asks_for_its_directory(base, name):
    assert "set model.base.path to its directory" in refusal(base, f"base/{name}")


VALUES = (None, True, 0, -1, 7, 2**40, 10**30, 1.5, "", "x", [], [0], {}, {"x": 1}, ...)
FACTS = SETTINGS | {
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "rope_scaling": None,
    "rope_parameters": {"rope_type": "default"},
    "hidden_act": "silu",
    "dtype": "float32",
    "attention_bias": False,
    "bos_token_id": 0,
    "sliding_window": None,
    "layer_types": ["full_attention"],
    "quantization_config": None,
    "auto_map": None,
    "text_config": {},
}


def is_taken_or_refused(base):
    """As `validate`, `plan` and a run take or refuse it: whatever else is raised fails the test."""
    with suppress(ConfigError):
        settings, _ = found(base)
        refuse_misfit(a_config(), settings)


@pytest.mark.parametrize("key", FACTS)
def test_any_value_of_a_key_of_config_json_is_taken_or_refused(base, key, monkeypatch):
    monkeypatch.setattr(directory, "refuse_unfit_tokenizer", lambda *_: None)  # a process for each, and tested beside
    for value in VALUES:
        (base.directory / "config.json").write_text(json.dumps(FACTS))
        changed(base.directory, **{key: value})
        is_taken_or_refused(base)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "5", '"x"', "{}", "\xff", '{"weight_map": {}}', '{"a": NaN}']
)
def test_any_content_of_a_file_of_settings_is_taken_or_refused_with_its_name(base, name, content):
    (base.directory / name).write_text(content, encoding="latin-1")
    assert name in refusal(base) or (name, content) == ("config.json", "{}")


def a_cache(base, *commits, main=None):
    """A cache of the hub, which keeps files once and links to them."""
    cache = base.directory.parent / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base.directory / name, cache / "blobs" / f"blob-{name}")
        for commit in commits:
            (cache / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
            (cache / "snapshots" / commit / name).symlink_to(f"../../blobs/blob-{name}")
    (cache / "snapshots").mkdir(exist_ok=True)
    if main is not None:
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(main)
    return cache


@pytest.mark.parametrize(
    ("commits", "main", "taken"),
    [
        ((MAIN,), None, MAIN),
        ((MAIN,), MAIN, MAIN),
        ((OTHER, MAIN), MAIN, MAIN),
        ((OTHER, MAIN), f"{OTHER}\n", OTHER),
        ((OTHER,), MAIN, OTHER),
    ],
)
@pytest.mark.parametrize("path", ["models--org--name", "models--org--name/snapshots"])
def test_a_cache_of_the_hub_is_read_through_its_snapshot(base, commits, main, taken, path):
    cache = a_cache(base, *commits, main=main)
    place = Place.find(BaseModelSource(claimName="models", path=path), base.paths)
    assert place.path == cache / "snapshots" / taken
    assert source_model(place)[0] == SETTINGS
    assert digest_of(cache) == digest_of(base.directory)


@pytest.mark.parametrize(("commits", "main"), [((MAIN, OTHER), None), ((MAIN, OTHER), "../../.."), ((), MAIN)])
def test_a_cache_that_does_not_say_which_snapshot_is_refused(base, commits, main):
    a_cache(base, *commits, main=main)
    message = refusal(base, "models--org--name")
    assert f"a cache of the Hugging Face hub with {len(commits)} snapshots" in message
    assert all(commit in message for commit in commits)


def test_a_snapshot_that_was_copied_without_its_blobs_is_named(base):
    cache = a_cache(base, MAIN)
    shutil.rmtree(cache / "blobs")
    assert "a link to a file that is not there" in refusal(base, "models--org--name")


def test_a_directory_of_caches_asks_for_one(base):
    cache = a_cache(base, MAIN)
    (base.directory.parent / "hub").mkdir()
    cache.rename(base.directory.parent / "hub" / cache.name)
    assert "did you mean model.base.path: .../hub/models--org--name?" in refusal(base, "hub")


@pytest.mark.parametrize(
    ("changes", "named", "way_out"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "(gptq)", "its card names"),
        ({"quantization_config": {"quant_method": "awq"}}, "(awq)", "its card names"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "(bitsandbytes)", "QLoRA"),
        ({"quantization_config": {"quant_method": "fp8"}}, "(fp8)", "bf16"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "(compressed-tensors)", "its card names"),
        ({"quantization_config": {"quant_method": 5}}, "(5)", "its card names"),
        ({"quantization_config": []}, "(quantization_config)", "its card names"),
        ({"compression_config": {}}, "(compressed-tensors)", "its card names"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "(MLX)", "its card names"),
    ],
)
def test_a_quantised_model_is_named_with_its_method(base, changes, named, way_out):
    changed(base.directory, **changes)
    message = refusal(base)
    assert f"is quantised {named}: its weights cannot be trained" in message
    assert way_out in message


def test_a_null_in_place_of_a_quantisation_says_nothing(base):
    changed(base.directory, quantization_config=None)
    assert found(base)[0] == SETTINGS


@pytest.mark.parametrize("part", [".qweight", ".qzeros", ".weight_packed", ".weight_scale_inv", ".SCB"])
def test_quantised_weights_show_by_their_names(base, part):
    name = f"model.layers.0.self_attn.q_proj{part}"
    (base.directory / "model.safetensors").write_bytes(safetensors({name: (2, 2)}, "I32"))
    assert f"is quantised ({name})" in refusal(base)


@pytest.mark.parametrize(("dtype", "size"), [("I32", 4), ("U8", 1), ("F8_E4M3", 1), ("I8", 1)])
def test_weights_of_a_type_that_cannot_be_trained_are_refused(base, dtype, size):
    shapes = FAMILIES["llama"].weights(SETTINGS)
    (base.directory / "model.safetensors").write_bytes(safetensors(shapes, dtype, size))
    message = refusal(base)
    assert dtype in message
    assert "take" in message


def test_a_tokenizer_without_an_end_of_text_is_refused_with_the_one_of_config_json(base):
    changed(base.directory, "tokenizer_config.json", eos_token=..., pad_token=...)
    message = refusal(base)
    assert "has no end-of-text token" in message
    assert '"eos_token": "<|' in message
    changed(base.directory, eos_token_id=None)
    assert "eos_token" in refusal(base)


def test_the_end_of_text_is_also_found_where_older_releases_name_it(base):
    end = json.loads((base.directory / "tokenizer_config.json").read_text())["eos_token"]
    changed(base.directory, "tokenizer_config.json", eos_token=...)
    (base.directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": end}}))
    assert found(base)


@pytest.mark.parametrize(
    ("names", "way_out"),
    [
        (("vocab.json", "merges.txt"), "AutoTokenizer"),
        (("tokenizer.model",), "AutoTokenizer"),
        (("vocab.txt",), "AutoTokenizer"),
        (("tekken.json",), "of the model's release for transformers"),
        (("qwen.tiktoken",), "of the model's release for transformers"),
    ],
)
def test_a_tokenizer_in_files_that_are_not_read_is_named_with_its_conversion(base, names, way_out):
    (base.directory / "tokenizer.json").unlink()
    for name in names:
        (base.directory / name).write_text("{}")
    message = refusal(base)
    assert "has no tokenizer.json: its tokenizer is in" in message
    assert all(name in message for name in names)
    assert way_out in message


def test_tokens_that_were_added_without_room_for_them_are_named(base):
    path = base.directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    token = {"id": 300, "content": "<|tool|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append(token | {"single_word": False})
    while len(tokenizer["model"]["vocab"]) < 300:
        tokenizer["model"]["vocab"][f"filler {len(tokenizer['model']['vocab'])}"] = len(tokenizer["model"]["vocab"])
    path.write_text(json.dumps(tokenizer))
    message = refusal(base)
    assert "knows the token 300, the model has 300 embeddings: '<|tool|>' has none" in message
    assert "resize_token_embeddings" in message


@pytest.mark.parametrize("template", ["{% if messages %}", "{{ messages[0", "{% endfor %}", "{% x %}", "{{ 'a' | x }}"])
def test_a_template_that_is_no_jinja_is_refused_with_its_line(base, template):
    (base.directory / "chat_template.jinja").write_text(f"\n{template}")
    tokenizer = tokenizer_from(found(base)[1])
    with pytest.raises(ConfigError, match=r"the base model's chat template is no Jinja: line [12]: "):
        list(documents(tokenizer, [Record("what runs?", "the pump", "a.jsonl", 1)]))


CODE = {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}


def test_code_that_a_known_model_brings_is_passed_over_and_told(base, caplog):
    changed(base.directory, auto_map=CODE)
    assert found(base)[0] == SETTINGS
    assert "brings code of its own (auto_map), which is never run" in caplog.text


@pytest.mark.parametrize("changes", [{"architectures": ["XForCausalLM"]}, {"architectures": ...}, {"model_type": "x"}])
def test_code_of_a_model_of_its_own_is_refused(base, changes):
    changed(base.directory, auto_map=CODE, **changes)
    assert "brings code of its own (auto_map), which is never run" in refusal(base)
