"""`dstj doctor JOB`: base model and data are checked as the run would, with its exit code."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import dstj.commands.doctor
from deepseek_trainer.base_model import examination
from deepseek_trainer.base_model.digest import digest_of
from deepseek_trainer.base_model.tokenizer_files import files_of
from dstj.commands import inputs
from support.builders.cli import job_file
from support.builders.images import CLASSES, RESNET, SIZE, a_picture, encoded
from support.builders.model import a_tokenizer, tiny_model

BASE = {"base": {"claimName": "models", "path": "tiny"}}
QUESTIONS = [{"prompt": f"Where is pump {i}?", "response": f"In hall {i}, below."} for i in range(30)]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(directory)
    tokenizer = a_tokenizer()
    tokenizer.chat_template = TEMPLATE
    for name, content in files_of(tokenizer).items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def base(place, tiny):
    """A base model that can be trained, to spoil."""
    return shutil.copytree(tiny, place / "models/tiny")


@pytest.fixture
def check(run_dstj, place, monkeypatch, capsys):
    """The exit code, and the lines of the checks of the job's inputs."""
    monkeypatch.setattr(examination, "SECONDS", 1)
    (place / "corpus").mkdir()
    monkeypatch.setattr(dstj.commands.doctor, "_machine_checks", lambda _: [])

    def run(*options, records=QUESTIONS, lines=None, file="corpus/train.jsonl", **changes):
        job = {"method": {"type": "Full"}, "data__format": "Instruction", "data__sequenceLength": 64} | changes
        job = job_file(place, **job)
        text = [json.dumps(each) for each in records] if lines is None else lines
        (place / file).write_text("".join(f"{line}\n" for line in text))
        return run_dstj("doctor", job, *options), capsys.readouterr().out

    return run


def spoil(base, name, **changes):
    settings = json.loads((base / name).read_text())
    (base / name).write_text(json.dumps(settings | changes))


def test_a_good_job_is_told_what_its_run_would_find(check, base):
    code, said = check(model=BASE)
    assert code == 0, said
    assert "ok    data       train 1 file; format Instruction" in said
    assert f"ok    base       {base}: llama, " in said
    assert "ok    records    train 30\n" in said
    assert " tokens, a chat template" in said
    assert "ok    rows       train: " in said
    assert "ok    rows       validation: " in said


@pytest.mark.parametrize(
    ("name", "changes", "rule"),
    [
        ("config.json", {"num_attention_heads": 0}, "num_attention_heads"),
        ("config.json", {"model_type": "nobody-knows"}, "nobody-knows"),
        ("config.json", {"hidden_size": 4096}, "weights"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantised"),
        ("tokenizer_config.json", {"auto_map": {"x": "y"}}, "auto_map"),
        (
            "tokenizer_config.json",
            {"chat_template": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"},
            "computing",
        ),
        ("tokenizer_config.json", {"eos_token": None, "pad_token": None}, "end-of-text"),
        ("tokenizer_config.json", {"chat_template": "{{ 1 // 0 }}"}, "refuses it"),
    ],
)
def test_a_bad_base_is_the_error_of_the_run(check, base, name, changes, rule):
    spoil(base, name, **changes)
    code, said = check(model=BASE)
    assert code == 64, said
    assert rule in said.partition("fail ")[2]


def test_what_is_no_adapter_of_the_base_is_the_error_of_the_run(check, base):
    code, said = check(model=BASE | {"adapter": BASE["base"]}, method={"type": "LoRA"})
    assert code == 64
    assert f"fail  adapter    {base} has no adapter_config.json: it is a whole model" in said


def test_a_base_that_is_not_there_names_what_lies_beside_it(check, base):
    base.rename(base.with_name("other"))
    code, said = check(model=BASE)
    assert code == 64
    assert f"-> {base.parent} holds other" in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_no_number_is_found_where_all_is_looked_at(check, base, dtype, value):
    weights = {name: weight.to(dtype) for name, weight in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors")
    assert check("--all", model=BASE)[0] == 0
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, base / "model.safetensors")
    code, said = check("--all", model=BASE)
    assert code == 64, said
    assert "the weight 'model.layers.1.mlp.up_proj.weight' is not finite" in said


def test_the_chat_template_of_the_job_is_tried(check, base):
    code, said = check(model=BASE | {"chatTemplate": TEMPLATE})
    assert (code, "the job's own chat template" in said) == (0, True), said
    assert check(model=BASE | {"chatTemplate": "{% for m in"})[0] == 64


@pytest.mark.parametrize("is_right", [True, False])
def test_a_digest_is_compared_where_all_is_looked_at(check, base, is_right):
    digest = digest_of(base) if is_right else hashlib.sha256(b"").hexdigest()
    model = {"base": BASE["base"] | {"sha256": digest}}
    assert check(model=model)[0] == 0
    code, said = check("--all", model=model)
    assert (code, "digest matches" in said) == ((0, True) if is_right else (77, False))


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ([], "no record"),
        (['{"prompt": "a"'], "train.jsonl:1"),
        (['{"prompt": "a", "respons": "b"}'], "train.jsonl:1"),
        (['{"text": "a"}', '{"text": "b"}'], "Text"),
        (['{"prompt": "a", "response": "b"}', '"a record"'], "train.jsonl:2"),
    ],
)
def test_bad_data_are_the_error_of_the_run(check, base, lines, rule):
    code, said = check(lines=lines, model=BASE)
    assert code == 65, said
    assert rule in said.partition("fail ")[2]


def test_bytes_that_are_no_utf_8_are_named_by_their_line(check, base, place, run_dstj, capsys):
    check(model=BASE)
    with (place / "corpus/train.jsonl").open("ab") as file:
        file.write(b'{"prompt": "a\xff", "response": "b"}\n')
    assert run_dstj("doctor", "tiny.yaml") == 65
    assert "train.jsonl:31" in capsys.readouterr().out


def test_the_data_come_first_as_in_the_run(check, base):
    spoil(base, "config.json", num_attention_heads=0)
    code, said = check(lines=["{"], model=BASE)
    assert code == 65
    assert "fail  data" in said
    assert "fail  base" in said


def test_what_is_lost_or_not_used_is_told(check, base):
    long = {"prompt": "Why?", "response": "so " * 200, "topic": "pumps"}
    code, said = check(
        records=[*QUESTIONS, long, long | {"prompt": "Why not?"}], model=BASE, data__validationFraction=0
    )
    assert code == 0, said
    assert "warn  rows       train: 2 of 32 records lost their end at data.sequenceLength=64" in said
    assert "warn  rows       train: fields that are not used: topic (2)" in said


def test_bad_records_that_are_skipped_are_counted(check, base):
    code, said = check(records=[*QUESTIONS, {"x": 1}], model=BASE, data__onBadRecord="Skip")
    assert code == 0, said
    assert "warn  records    train 30; 1 bad ones are skipped" in said
    assert "-> the first: train.jsonl:31" in said


def test_only_the_first_records_are_looked_at_unless_all_are(check, base, monkeypatch):
    monkeypatch.setattr(inputs, "RECORDS", 20)
    lines = [*map(json.dumps, QUESTIONS), "{"]
    code, said = check(lines=lines, model=BASE)
    assert code == 0, said
    assert "train 20 among the first 20 of each place: --all looks at all" in said
    code, said = check("--all", lines=lines, model=BASE)
    assert code == 65
    assert "train.jsonl:31" in said


def test_the_format_that_auto_recognises_is_told(check, base):
    code, said = check(model=BASE, data__format="Auto")
    assert (code, "format Instruction, which Auto recognised" in said) == (0, True), said


def test_more_steps_of_warmup_than_the_run_has_are_refused(check, base):
    code, said = check(model=BASE, optimization={"globalBatchSize": 4, "epochs": 1, "warmupSteps": 500})
    assert code == 64, said
    assert "optimization.warmupSteps: 500" in said


def test_names_of_fields_of_a_private_job_are_not_told(check, base, run_dstj):
    run_dstj("keys", "generate", "--secret", "s")
    records = [each | {"p4ss": "phrase"} for each in QUESTIONS]
    sealed = {"gracePeriodSeconds": 10, "encryption": {"keyRef": {"secretName": "s"}}}
    code, said = check(records=records, model=BASE, checkpoint=sealed)
    assert code == 0, said
    assert "1, whose names are private" in said
    assert "p4ss" not in said


def test_nothing_is_written(check, base, place):
    check(model=BASE)
    before = sorted(place.rglob("*"))
    check(model=BASE)
    assert sorted(place.rglob("*")) == before


def test_pictures_are_decoded(check, place):
    for name in CLASSES:
        for i in range(6):
            file = place / f"corpus/{name}/{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(a_picture(i, light=name == "light")))
    job = {"model": {"vision": RESNET}, "data__format": "Images", "data__images": SIZE, "data__validationFraction": 0.3}
    job |= {"data__sequenceLength": 1024, "optimization": {"globalBatchSize": 4, "maxSteps": 3}}
    code, said = check(file="unused", **job)
    assert code == 0, said
    assert "ok    records    train 12\n" in said
    assert "ok    rows       validation: " in said
    (place / "corpus/dark/0.png").write_bytes(b"no picture")
    code, said = check(file="unused", **job)
    assert code == 65
    assert "dark/0.png is no PNG or JPEG" in said


def test_each_source_and_each_class_is_looked_at(check, base, place):
    for name in ("a", "b"):
        (place / f"corpus/{name}.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in QUESTIONS))
    sources = [{"name": name, "claimName": "corpus", "path": f"{name}.jsonl", "minimumShare": 0.5} for name in "ab"]
    code, said = check(model=BASE, data={"sources": sources, "format": "Instruction", "sequenceLength": 64})
    assert code == 0, said
    assert "ok    records    sources[a] 30, sources[b] 30\n" in said
    code, said = check(
        records=[q | {"kind": "ab"[i % 2]} for i, q in enumerate(QUESTIONS)],
        model=BASE,
        data={
            "train": {"claimName": "corpus", "path": "train.jsonl"},
            "format": "Instruction",
            "balanceBy": "kind",
            "sequenceLength": 64,
        },
    )
    assert code == 0, said


def test_a_model_from_scratch_has_a_tokenizer_of_its_records(check):
    code, said = check(lines=[json.dumps({"text": q["response"]}) for q in QUESTIONS], data__format="Text")
    assert code == 0, said
    assert " tokens, trained on these records" in said
    assert "base" not in said.replace("base-", "")


def test_a_validation_of_its_own_is_read_after_the_base(check, base, place):
    (place / "corpus/held.jsonl").write_text("{\n")
    (place / "corpus/train.jsonl").write_text("")
    validation = {"claimName": "corpus", "path": "held.jsonl"}
    train = {"claimName": "corpus", "path": "train.jsonl"}
    assert check(model=BASE, data__validation=validation, data__train=train)[0] == 65
    spoil(base, "config.json", num_attention_heads=0)
    code, said = check(model=BASE, data__validation=validation, data__train=train)
    assert code == 64, said
    assert "held.jsonl:1" in said
