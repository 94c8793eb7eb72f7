import hashlib
import json
import re

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepseek_trainer.base_model.source import prepare_model
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.model.loading import load_model, trainable_parameters
from deepseek_trainer.model.method import trainable
from deepseek_trainer.result.export import Results, export
from deepseek_trainer.result.manifest import open_result
from deepseek_trainer.result.unseal import decrypt_result
from deepseek_trainer.tasks.language.task import LanguageTask
from deepseek_trainer.tasks.task import Answer
from deepseek_trainer.worker.vaults import data_vault, export_vault, manifest_vault
from support.builders.model import a_batch, a_config, a_gguf, a_tokenizer, paths_with_base, sealed, tiny_model

RESULTS = Results(
    events=[{"event": "step", "time": 1e9, "step": 1, "loss": 2.0, "learningRate": 1e-4, "tokensPerSecond": 9.0}],
    weights="of step 6, with the lowest validation loss",
    step=6,
    commit="c0de",
    requested=MethodType.LORA,
    data={"digest": "d1ce", "train": {"records": 20, "rows": 3, "skipped": 2}},
    before={"loss": 4.0, "right": 0, "asked": 4},
    after={"loss": 1.5, "right": 3, "asked": 4},
    answers=[Answer("a secret question", "a secret reference", "no idea", "a secret answer")],
)

BASE = {"claimName": "models", "path": "base"}


@pytest.fixture
def job(tmp_path):
    """A config with both formats, its paths, and a base with adapters that make a difference."""
    return a_job(tmp_path)


def a_job(root, is_sealed=False, **changes):
    paths, base = paths_with_base(root)
    checkpoint = sealed(paths) if is_sealed else {}
    config = a_config(**{"export": {"formats": ["Merged", "Adapter"]}, "checkpoint": checkpoint} | changes).with_rate(1)
    a_gguf(base, tiny_model(hidden_size=64, head_dim=16), a_tokenizer())  # whole blocks of NF4 in each row
    vault = data_vault(config, paths)
    prepare_model(config, paths, vault)
    cpu = torch.device("cpu")
    model = trainable(load_model(config, paths, vault, cpu), config.method, 0, cpu, torch.float32)
    torch.manual_seed(0)
    for parameter in trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.3)
    return config, paths, model.eval()


def exported(config, paths, model):
    task = LanguageTask(config, paths, data_vault(config, paths), paths.prepared)
    task.tokenizer = a_tokenizer()
    return export(model, task, config, paths, RESULTS)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=a_batch().tokens_BT).logits


@pytest.mark.parametrize("type_", ["LoRA", "QLoRA"])
def test_merged_model_loads_with_plain_transformers_and_answers_alike(tmp_path, type_):
    job = a_job(tmp_path, method={"type": type_, "lora": {"rank": 4}})
    before = logits(job[2])
    target = exported(*job)
    loaded = AutoModelForCausalLM.from_pretrained(target)
    torch.testing.assert_close(logits(loaded), before, rtol=1e-4, atol=1e-4)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    tokenizer = a_tokenizer()
    assert AutoTokenizer.from_pretrained(target)("pump")["input_ids"] == tokenizer("pump")["input_ids"]
    assert loaded.generation_config.eos_token_id == loaded.config.eos_token_id == tokenizer.eos_token_id


def test_adapter_loads_with_plain_peft_and_answers_alike(job):
    config, paths, model = job
    before = logits(model)
    target = exported(*job)
    base = load_model(config, paths, data_vault(config, paths), torch.device("cpu"))
    loaded = PeftModel.from_pretrained(base, target / "adapter")
    torch.testing.assert_close(logits(loaded), before, rtol=1e-6, atol=1e-6)


def exported_alike(config, paths, model):
    """Where the results are, of which plain peft and plain transformers make models that answer as this one does."""
    before = logits(model)
    target = exported(config, paths, model)
    base = load_model(config, paths, data_vault(config, paths), torch.device("cpu"))
    for loaded in (PeftModel.from_pretrained(base, target / "adapter"), AutoModelForCausalLM.from_pretrained(target)):
        torch.testing.assert_close(logits(loaded), before, rtol=1e-4, atol=1e-4)
    return target


def test_rank_stabilised_adapters_answer_alike_from_both_exports(tmp_path):
    lora = {"rank": 4, "alpha": 8, "rankStabilized": True}
    config, paths, model = a_job(tmp_path, method={"type": "LoRA", "lora": lora})
    (weights, *_) = (module.scaling for module in model.modules() if hasattr(module, "lora_A"))
    assert list(weights.values()) == [8 / 4**0.5], "the rank's root, not the rank"
    target = exported_alike(config, paths, model)
    assert "alpha 8 over sqrt(rank)" in (target / "README.md").read_text()


@pytest.mark.parametrize("dropout", [0, 0.1])
def test_adapters_with_lengths_of_rows_answer_alike_from_both_exports(tmp_path, dropout):
    lora = {"rank": 4, "dora": True, "dropout": dropout}
    config, paths, model = a_job(tmp_path, method={"type": "LoRA", "lora": lora})
    lengths = [weight for name, weight in model.named_parameters() if "lora_magnitude_vector" in name]
    assert lengths
    assert all(weight.requires_grad for weight in lengths)
    with torch.no_grad():
        for weight in lengths:
            weight.mul_(torch.linspace(0.5, 1.5, len(weight)))
    target = exported_alike(config, paths, model)
    assert "LoRA with DoRA" in (target / "README.md").read_text()


def test_a_jobs_own_template_goes_with_its_result_which_stops_at_its_end_of_turn(tmp_path):
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + pad_token + '\\n' }}{% endfor %}"
    config, paths, model = a_job(tmp_path, model={"base": BASE, "chatTemplate": template})
    task = LanguageTask(config, paths, data_vault(config, paths), paths.prepared)
    target = export(model, task, config, paths, RESULTS)
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.chat_template == (target / "adapter/chat_template.jinja").read_text() == template
    assert "Its chat template is the job's" in (target / "README.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(target)
    assert loaded.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert loaded.config.eos_token_id == tokenizer.eos_token_id


def test_export_holds_what_was_asked_for(tmp_path):
    merged, adapter = {"model.safetensors", "config.json"}, {"adapter"}
    for name, formats, present, absent in (("m", ["Merged"], merged, adapter), ("a", ["Adapter"], adapter, merged)):
        (tmp_path / name).mkdir()
        target = exported(*a_job(tmp_path / name, export={"formats": formats}))
        files = {path.name for path in target.iterdir()}
        assert present | {"README.md", "report.html", "evaluation.json"} <= files
        assert not absent & files


def test_fully_trained_model_from_scratch_is_exported(tmp_path):
    architecture = {"hiddenSize": 32, "numLayers": 2, "numHeads": 4, "intermediateSize": 64, "vocabSize": 288}
    config = a_config(model={"architecture": architecture}, method={"type": "Full"})
    paths, _ = paths_with_base(tmp_path)
    model = load_model(config, paths, data_vault(config, paths), torch.device("cpu"))
    target = exported(config, paths, model)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(target)), logits(model))
    assert "none: trained from scratch" in (target / "README.md").read_text()


def test_model_card_tells_origin_result_and_checksums_and_no_sample(job):
    _, paths, _ = job
    target = exported(*job)
    card = (target / "README.md").read_text()
    base_digest = hashlib.sha256(paths.claim("models", "base").read_bytes()).hexdigest()
    for fact in (
        base_digest,
        "| loss | 4 | 1.5 |",
        "| Weights | of step 6, with the lowest validation loss |",
        "| train.records | 20 |",
        "| train.skipped | 2 |",
        "LoRA, rank 4",
        "| learningRate | 0.0002 |",
    ):
        assert fact in card
    assert "secret" not in card
    checksums = dict(re.findall(r"^\| (\S+) \| ([0-9a-f]{64}) \|$", card, re.MULTILINE))
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert checksums.keys() == files - {"README.md", "report.html", "evaluation.json", "manifest.json"}
    for name, digest in checksums.items():
        assert hashlib.sha256((target / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("of_sealed_data", "is_told"), [(True, False), (False, True)])
def test_model_card_in_the_clear_tells_no_digest_of_a_sealed_base(tmp_path, of_sealed_data, is_told):
    export = {"formats": ["Merged"], "sealed": False}
    data = a_config().data.model_dump(mode="json", by_alias=True, exclude_none=True) | {"sealed": of_sealed_data}
    job = a_job(tmp_path, is_sealed=True, export=export, data=data)
    digest = hashlib.sha256(job[1].claim("models", "base").read_bytes()).hexdigest()
    assert (digest in (exported(*job) / "README.md").read_text()) is is_told


def test_report_holds_the_answers_and_tells_which_weights_gave_them(job):
    report = (exported(*job) / "report.html").read_text()
    assert "a secret answer" in report
    assert "<td>Weights</td><td>of step 6, with the lowest validation loss</td>" in report
    assert "<td>train.skipped</td><td>2</td>" in report


def test_second_export_replaces_the_first_as_a_whole(tmp_path):
    config, paths, model = a_job(tmp_path)
    target = exported(config, paths, model)
    (target / "stale").touch()
    again = load_model(config, paths, data_vault(config, paths), torch.device("cpu"))
    full = config.model_copy(update={"export": a_config().export})
    exported(full, paths, again)
    assert not (target / "stale").exists()
    assert [path.name for path in paths.export.iterdir()] == ["pumps"]


def test_adapter_settings_are_those_of_the_job(job):
    settings = json.loads((exported(*job) / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["target_modules"], settings["inference_mode"]) == (4, ["q_proj", "v_proj"], True)


def test_sealed_export_is_sealed_to_the_last_file_and_can_be_unsealed(tmp_path):
    config, paths, model = a_job(tmp_path, is_sealed=True)
    before = logits(model)
    target = exported(config, paths, model)
    files = [path for path in target.rglob("*") if path.is_file()]
    assert len(files) == 11
    for path in files:
        assert path.suffix == ".sealed"
        assert not any(word in path.read_bytes() for word in (b"secret", b"embed_tokens", b"pumps", b"lora_A"))
    decrypt_result(open_result(target, export_vault(config, paths)), tmp_path / "clear")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "clear")
    torch.testing.assert_close(logits(loaded), before, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "clear" / "adapter" / "adapter_config.json").exists()
    assert (tmp_path / "clear").stat().st_mode & 0o777 == 0o700


def test_manifest_of_a_result_in_the_clear_is_sealed_where_the_job_has_a_key(tmp_path):
    config, paths, model = a_job(tmp_path, is_sealed=True, export={"formats": ["Adapter"], "sealed": False})
    target = exported(config, paths, model)
    assert {path.name for path in target.rglob("*.sealed")} == {"manifest.json.sealed"}
    manifest = open_result(target, manifest_vault(config, paths)).manifest
    assert (manifest.key_id, manifest.step, manifest.commit, manifest.job) == (None, 6, "c0de", "ml/pumps")
    assert {file.name for file in manifest.files} > {"README.md", "adapter/adapter_config.json"}
