"""What somebody may put into a base model's files: it is prepared, or refused for good, within seconds."""

import json
import os
import shutil
import struct
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import safetensors.torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_trainer.base_model import examination
from deepseek_trainer.base_model.source import prepare_model
from deepseek_trainer.base_model.tokenizer_files import files_of, load_tokenizer
from deepseek_trainer.contract.errors import ConfigError, DataError, IntegrityError
from deepseek_trainer.model.loading import load_base
from deepseek_trainer.tasks.language import chat
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.tokenizer import documents
from deepseek_trainer.worker.vaults import data_vault
from support.builders.model import a_config, a_gguf, a_tokenizer, paths_with_base, tiny_model

PATIENCE = 40  # [s] on a machine that does much else
REFUSALS = (ConfigError, IntegrityError, DataError)
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
JSON_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors.index.json")
ODD = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    1.5,
    -0.0,
    1e308,
    "",
    "x",
    "../../x.safetensors",
    "\x1b[31m\n",
    "a" * 10_000,
    [],
    [0],
    ["x"],
    [[[]]],
    {},
    {"x": 1},
    {"content": 5},
)
MANY = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A model that can be trained, in both of its forms."""
    root = tmp_path_factory.mktemp("good")
    tokenizer = a_tokenizer()
    tokenizer.chat_template = TEMPLATE
    directory = root / "directory"
    tiny_model().save_pretrained(directory)
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, content in files_of(tokenizer).items():
        (directory / name).write_bytes(content)
    a_gguf(root / "gguf", tiny_model(), tokenizer, **{"tokenizer.chat_template": TEMPLATE})
    return SimpleNamespace(directory=directory, gguf=(root / "gguf").read_bytes())


@pytest.fixture
def hostile(tmp_path, good, monkeypatch):
    """A copy of the good model to spoil, and what becomes of it."""
    monkeypatch.setattr(examination, "SECONDS", 1)
    monkeypatch.setattr(examination, "MEMORY", 256 << 20)
    paths, base = paths_with_base(tmp_path)
    return SimpleNamespace(paths=paths, base=base, good=good)


def a_copy(hostile):
    shutil.rmtree(hostile.paths.prepared, ignore_errors=True)
    if hostile.base.is_dir():
        shutil.rmtree(hostile.base)
    shutil.copytree(hostile.good.directory, hostile.base)
    return hostile.base


def used(hostile):
    """Prepare the model, load it and make tokens of a record: what a job does before its first step."""
    config = a_config()
    vault = data_vault(config, hostile.paths)
    directory = prepare_model(config, hostile.paths, vault)
    tokenizer = load_tokenizer(directory, vault)
    list(documents(tokenizer, [Record("what runs?", "the pump", "a.jsonl", 1)]))
    return load_base(directory, vault)


def refusal(hostile):
    before = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        used(hostile)
    assert time.monotonic() - before < PATIENCE
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


def is_used_or_refused(hostile):
    before = time.monotonic()
    with suppress(*REFUSALS):
        used(hostile)
    assert time.monotonic() - before < PATIENCE


def places(value, path=()):
    """Every place in a JSON tree."""
    yield path
    if isinstance(value, dict):
        for key, inner in list(value.items())[:40]:
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:3]):
            yield from places(inner, (*path, i))


def replaced(tree, path, value):
    if not path:
        return value
    *outer, last = path
    node = tree
    for key in outer:
        node = node[key]
    if value is Ellipsis:
        del node[last]
    else:
        node[last] = value
    return tree


def with_header(content, change):
    """A safetensors file whose header is another one."""
    (length,) = struct.unpack("<Q", content[:8])
    header = change(content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def test_the_good_model_is_used_in_both_forms(hostile):
    a_copy(hostile)
    assert used(hostile).num_parameters() == tiny_model().num_parameters()
    shutil.rmtree(hostile.base)
    hostile.base.write_bytes(hostile.good.gguf)
    assert used(hostile).num_parameters() == tiny_model().num_parameters()


@MANY
@given(data=st.data(), name=st.sampled_from(JSON_FILES), value=st.sampled_from((*ODD, ...)))
def test_any_value_in_any_file_of_settings_is_used_or_refused(hostile, data, name, value):
    base = a_copy(hostile)
    tree = json.loads((base / name).read_bytes())
    path = data.draw(st.sampled_from([*places(tree)][1 if value is ... else 0 :]))
    (base / name).write_text(json.dumps(replaced(tree, path, value)))
    is_used_or_refused(hostile)


@MANY
@given(data=st.data(), value=st.sampled_from((*ODD, ...)))
def test_any_value_in_the_header_of_the_weights_is_used_or_refused(hostile, data, value):
    base = a_copy(hostile)

    def change(header):
        tree = json.loads(header)
        path = data.draw(st.sampled_from([*places(tree)][1:]))
        return json.dumps(replaced(tree, path, value)).encode()

    weights = base / "model.safetensors"
    weights.write_bytes(with_header(weights.read_bytes(), change))
    is_used_or_refused(hostile)


@MANY
@given(
    at=st.integers(0, 1 << 20),
    new=st.binary(min_size=1, max_size=12) | st.sampled_from([b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**62)]),
)
def test_any_bytes_in_a_gguf_file_are_used_or_refused(hostile, at, new):
    shutil.rmtree(hostile.paths.prepared, ignore_errors=True)
    content = bytearray(hostile.good.gguf)
    begin = at % (len(content) * 9 // 10)
    content[begin : begin + len(new)] = new
    hostile.base.write_bytes(content)
    is_used_or_refused(hostile)


def settings_with(name, **changes):
    def spoil(base):
        tree = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps(tree | changes))

    return spoil


def content(name, text):
    return lambda base: (base / name).write_text(text)


def header(change):
    """A change of the JSON of the weights' header, as text or as a function of the tree."""

    def changed(old):
        return change if isinstance(change, bytes) else json.dumps(change(json.loads(old))).encode()

    def spoil(base):
        weights = base / "model.safetensors"
        weights.write_bytes(with_header(weights.read_bytes(), changed))

    return spoil


def first_tensor(**changes):
    def change(tree):
        name = next(key for key in tree if key != "__metadata__")
        return tree | {name: tree[name] | changes}

    return header(change)


def a_link_out(name):
    def spoil(base):
        outside = base.parent.parent / "outside"
        outside.write_bytes((base / name).read_bytes() if (base / name).exists() else b"{{ 1 }}")
        (base / name).unlink(missing_ok=True)
        (base / name).symlink_to(outside)

    return spoil


def a_fifo(name):
    def spoil(base):
        (base / name).unlink(missing_ok=True)
        os.mkfifo(base / name)

    return spoil


def a_pattern(regex):
    """A tokenizer that cuts text by a pattern of its own."""

    def spoil(base):
        tree = json.loads((base / "tokenizer.json").read_text())
        tree["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        (base / "tokenizer.json").write_text(json.dumps(tree))

    return spoil


def a_normalizer(*steps):
    def spoil(base):
        tree = json.loads((base / "tokenizer.json").read_text())
        tree["normalizer"] = {"type": "Sequence", "normalizers": [*steps]}
        (base / "tokenizer.json").write_text(json.dumps(tree))

    return spoil


def two_files_with_one_tensor(base):
    shutil.copy(base / "model.safetensors", base / "more.safetensors")
    (base / "model.safetensors.index.json").unlink()


DEEP = "[" * 100_000
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
SPOILED = {
    "no heads": (settings_with("config.json", num_attention_heads=0), "num_attention_heads 0: it must be a whole"),
    "2^31 layers": (settings_with("config.json", num_hidden_layers=2**31), "num_hidden_layers 2147483648: it must be"),
    "4000 layers": (settings_with("config.json", num_hidden_layers=4000), "lacks model.layers.10.input_layernorm"),
    "layers as text": (settings_with("config.json", num_hidden_layers="2"), "num_hidden_layers '2': it must be"),
    "half a head": (settings_with("config.json", head_dim=8.5), "head_dim 8.5: it must be"),
    "uneven heads": (settings_with("config.json", num_key_value_heads=3), "by config.json it is 24 x 32"),
    "no vocabulary": (settings_with("config.json", vocab_size=None), "config.json lacks vocab_size"),
    "unknown function": (
        settings_with("config.json", hidden_act="no such"),
        "has hidden_act 'no such': it must be",
    ),
    "pad token beyond": (settings_with("config.json", pad_token_id=999), "has pad_token_id 999, the model has 288"),
    "type is a list": (settings_with("config.json", model_type=["llama"]), "is a ['llama'] model"),
    "infinite": (content("config.json", '{"rms_norm_eps": Infinity}'), "config.json is not JSON"),
    "deep config": (content("config.json", DEEP), "config.json is not JSON: recursion limit"),
    "a key twice": (content("config.json", '{"a": 1, "a": 2}'), "the key 'a' stands there twice"),
    "deep settings": (content("tokenizer_config.json", DEEP), "tokenizer_config.json is not JSON"),
    "deep tokenizer": (content("tokenizer.json", DEEP), "tokenizer cannot be read"),
    "template as number": (settings_with("tokenizer_config.json", chat_template=5), "chat_template 5: it must be"),
    "token as number": (settings_with("tokenizer_config.json", eos_token=5), "eos_token 5: it must be a string"),
    "no end": (settings_with("tokenizer_config.json", eos_token=None, pad_token=None), "no end-of-text token"),
    "end beyond": (
        settings_with("tokenizer_config.json", eos_token="<new>"),
        "eos_token '<new>', which tokenizer.json does not",
    ),
    "deep index": (content("model.safetensors.index.json", DEEP), "index.json is not JSON"),
    "empty index": (content("model.safetensors.index.json", "{}"), "has no weight_map"),
    "index of numbers": (content("model.safetensors.index.json", '{"weight_map": {"a": 1}}'), "has no weight_map"),
    "index out": (content("model.safetensors.index.json", '{"weight_map": {"a": "../x"}}'), "lacks ../x, which"),
    "deep header": (header(DEEP.encode()), "is not a safetensors file"),
    "tensor twice": (header(b'{"a": {}, "a": {}}'), "the key 'a' stands there twice"),
    "negative shape": (first_tensor(shape=[-1, 32]), "has shape [-1, 32]"),
    "huge shape": (first_tensor(shape=[2**52] * 30), "cannot lie at bytes"),
    "shape of many": (first_tensor(shape=[1] * 100), "has shape [1, 1"),
    "offsets as text": (first_tensor(data_offsets=["0", "4"]), "and offsets ['0', '4']"),
    "other numbers": (first_tensor(dtype="F8_E4M3"), "is of type F8_E4M3: weights of F32"),
    "overlap": (header(lambda tree: tree | {"x": tree["model.norm.weight"]}), "begins inside of another tensor"),
    "in two files": (two_files_with_one_tensor, "is both in model.safetensors and in more.safetensors"),
    "template out": (a_link_out("chat_template.jinja"), "is a link to a file outside"),
    "config out": (a_link_out("config.json"), "is a link to a file outside"),
    "weights out": (a_link_out("model.safetensors"), "is a link to a file outside"),
    "tokenizer waits": (a_fifo("tokenizer.json"), "tokenizer.json' is a FIFO"),
    "weights wait": (a_fifo("model.safetensors"), "model.safetensors' is a FIFO"),
    "weights nowhere": (lambda base: (base / "more.safetensors").symlink_to("nowhere"), ""),
    "pattern gives up": (a_pattern("(a+)+$"), "or its chat template, fails: PanicException"),
    "pattern takes long": (a_pattern("(?:x+x+)+y"), "or its chat template, fails: PanicException"),
    "grows": (a_normalizer(*[DOUBLE] * 60), "or its chat template, takes more "),
    "vocabulary of 2^40": (
        settings_with("tokenizer.json", model={"type": "WordLevel", "vocab": {"a": 2**40}}),
        "tokenizer cannot be read",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_directory_is_refused_with_what_is_wrong(hostile, name):
    spoil, message = SPOILED[name]
    spoil(a_copy(hostile))
    if name == "weights nowhere":
        assert used(hostile)  # the index does not name it
        return
    assert message in refusal(hostile)


TEMPLATES = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops far": "{% for i in range(10**12) %}{% endfor %}",
    "repeats": "{{ 'a' * 10**11 }}",
    "grows": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "counts": "{{ 10 ** (10 ** 10) }}",
    "pads": "{{ 'a'|center(10**11) }}",
    "calls itself": "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
    "divides by nothing": "{{ 1 // 0 }}",
    "takes what is not there": "{{ messages[99]['content']['x'] }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_without_end_is_refused(hostile, name):
    settings_with("tokenizer_config.json", chat_template=TEMPLATES[name])(a_copy(hostile))
    assert "chat template" in refusal(hostile)


def test_a_template_that_waits_for_a_word_of_the_data_is_refused_when_it_comes(hostile, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 1)
    template = f"{{% if 'valve' in messages|string %}}{TEMPLATES['loops']}{{% endif %}}{TEMPLATE}"
    settings_with("tokenizer_config.json", chat_template=template)(a_copy(hostile))
    used(hostile)
    vault = data_vault(a_config(), hostile.paths)
    tokenizer = load_tokenizer(prepare_model(a_config(), hostile.paths, vault), vault)
    with pytest.raises(ConfigError, match=r"chat template, from a\.jsonl:1 on, takes more than 1 s of computing"):
        list(documents(tokenizer, [Record("which valve?", "this", "a.jsonl", 1)]))


def test_a_pattern_that_gives_up_at_a_word_of_the_data_is_refused_when_it_comes(hostile):
    a_pattern("(é+)+$")(a_copy(hostile))
    vault = data_vault(a_config(), hostile.paths)
    tokenizer = load_tokenizer(prepare_model(a_config(), hostile.paths, vault), vault)
    with pytest.raises(ConfigError, match="the tokenizer, on a text of the data, cannot be read: PanicException"):
        list(documents(tokenizer, [Record(None, "é" * 60 + "b", "a.txt", 1)]))


def test_lengths_that_a_tokenizer_brings_do_not_count(hostile):
    base = a_copy(hostile)
    longest = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    fixed = {"strategy": {"Fixed": 2**31}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    settings_with("tokenizer.json", truncation=longest, padding=fixed | {"pad_to_multiple_of": None})(base)
    used(hostile)


@pytest.mark.parametrize("make", [os.mkfifo, lambda base: base.symlink_to("/proc/kmsg")])
def test_a_base_that_is_no_file_is_refused(hostile, make):
    make(hostile.base)
    assert refusal(hostile)


def test_a_directory_that_a_link_leads_out_to_is_refused(hostile, tmp_path):
    shutil.copytree(hostile.good.directory, tmp_path / "outside")
    hostile.base.symlink_to(tmp_path / "outside")
    assert "is a link to a file outside" in refusal(hostile)


U8, U32, STRING, ARRAY, U64 = 0, 4, 8, 9, 10


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def a_field(name, kind, raw):
    return text(name) + struct.pack("<I", kind) + raw


def a_header(*fields, tensors=(), num_fields=None, num_tensors=None):
    counts = (len(tensors) if num_tensors is None else num_tensors, len(fields) if num_fields is None else num_fields)
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join([*fields, *tensors]) + b"\0" * 64


def a_tensor(name, shape, kind=0, start=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, start)


ALIGNED = "general.alignment"
GGUFS = {
    "alignment of 0": a_header(a_field(ALIGNED, U32, struct.pack("<I", 0))),
    "alignment of 7": a_header(a_field(ALIGNED, U32, struct.pack("<I", 7))),
    "alignment as text": a_header(a_field(ALIGNED, STRING, text("32"))),
    "alignment as list": a_header(a_field(ALIGNED, ARRAY, struct.pack("<IQ", U8, 1) + b"\1")),
    "arrays of arrays": a_header(a_field("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000)),
    "an endless array": a_header(a_field("a", ARRAY, struct.pack("<IQ", STRING, 2**60))),
    "an endless text": a_header(a_field("a", STRING, struct.pack("<Q", 2**63))),
    "a type that is none": a_header(a_field("a", 77, b"")),
    "a field twice": a_header(*[a_field("a", U8, b"\1")] * 2),
    "many fields": a_header(num_fields=2**60),
    "many tensors": a_header(num_tensors=2**60),
    "a tensor twice": a_header(tensors=[a_tensor("a", (2,))] * 2),
    "tensors in one place": a_header(tensors=[a_tensor("a", (2,)), a_tensor("b", (2,))]),
    "no dimensions": a_header(tensors=[a_tensor("a", ())]),
    "many dimensions": a_header(tensors=[a_tensor("a", (1,) * 50)]),
    "a dimension of 0": a_header(tensors=[a_tensor("a", (0, 2))]),
    "half a block": a_header(tensors=[a_tensor("a", (33,), kind=8)]),
    "quants that nobody knows": a_header(tensors=[a_tensor("a", (32,), kind=999)]),
    "beyond the end": a_header(tensors=[a_tensor("a", (2,), start=2**63)]),
    "nothing else": a_header(),
    "architecture as list": a_header(a_field("general.architecture", ARRAY, struct.pack("<IQ", U8, 1) + b"\1")),
}


@pytest.mark.parametrize("name", GGUFS)
def test_a_spoiled_gguf_file_is_refused(hostile, name):
    hostile.base.write_bytes(GGUFS[name])
    assert str(hostile.base) in refusal(hostile)


@MANY
@given(data=st.data(), value=st.sampled_from((0, 2**32 - 1, 2**31, 1)))
def test_any_number_among_the_metadata_of_a_gguf_file_is_used_or_refused(hostile, data, value):
    shutil.rmtree(hostile.paths.prepared, ignore_errors=True)
    content = bytearray(hostile.good.gguf)
    names = [b"block_count", b"head_count", b"embedding_length", b"token_id", b"head_count_kv", b"freq_base", b"pre"]
    found = content.index(data.draw(st.sampled_from(names)))
    end = content.index(b"\0", found) - 1  # the type follows the name
    content[end + 4 : end + 8] = struct.pack("<I", value)
    hostile.base.write_bytes(content)
    is_used_or_refused(hostile)
