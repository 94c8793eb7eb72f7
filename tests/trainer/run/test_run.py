"""A run on one rank, from prepared data to the exported model: where it starts, and which weights it exports."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from deepseek_trainer.base_model.digest import digest_of
from deepseek_trainer.checkpoints.catalog import read_head
from deepseek_trainer.checkpoints.legs import legs_from
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import (
    AdaptingError,
    ConfigError,
    DataError,
    IntegrityError,
    NotFiniteError,
    NotImprovedError,
    OutOfMemoryError,
)
from deepseek_trainer.contract.export import ExportSpec
from deepseek_trainer.contract.method import MethodSpec, MethodType
from deepseek_trainer.contract.model import BaseModelSource, ModelSpec
from deepseek_trainer.contract.names import (
    ENV_RUN_ID,
    Paths,
)
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.result.manifest import open_result
from deepseek_trainer.run.rank import Rank
from deepseek_trainer.run.resume import checkpoint_to_resume
from deepseek_trainer.storage.vault import Purpose, Vault
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.training import loop
from deepseek_trainer.training.torch_learner import TorchLearner
from deepseek_trainer.worker.process import ProfileFlag, StopFlag, StopRequested
from deepseek_trainer.worker.scratch import Scratch
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import CLAIM, RUN_ID, pairs, prepare, texts, write_jsonl
from support.builders.loop import ALONE
from support.builders.model import a_gguf, a_tokenizer, tiny_model
from support.builders.run import a_job, a_worker, events, trained
from support.builders.vault import a_state, a_store, a_vault

A_BASE = BaseModelSource(claim_name="models", path="base")
LEARNING = {"maxSteps": 2, "globalBatchSize": 2, "learningRate": 0.001, "schedule": "Constant"}
ACCUMULATE = TorchLearner.accumulate
NOT_ASKED: Any = None  # a task, for what needs none


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    with a_worker(tmp_path, monkeypatch) as paths:
        yield paths


def test_the_best_weights_are_exported_and_the_card_and_the_report_say_so(paths: Paths):
    result = trained(diverging(paths), paths)
    weights = "of step 1, with the lowest validation loss; the last was step 2"
    assert f"| Weights | {weights} |" in (result / "README.md").read_text()
    assert f"<td>{weights}</td>" in (result / "report.html").read_text()
    assert loss_after(result) == evaluations(paths)[1]


def test_the_manifest_of_a_result_names_the_step_and_the_commit_with_which_the_run_ended(paths: Paths):
    result = trained(diverging(paths), paths)
    manifest = open_result(result, Vault("ml/demo", Purpose.EXPORT)).manifest
    head = read_head(paths.checkpoints, Vault("ml/demo", Purpose.CHECKPOINT))
    assert manifest is not None
    assert head is not None
    assert (manifest.step, manifest.commit) == (1, head.exported)


def test_where_the_best_checkpoint_is_damaged_the_last_weights_are_exported_and_the_card_says_why(paths: Paths):
    trained(diverging(paths), paths)
    damage(paths.checkpoints / "step-00000001" / "rank-00000.safetensors")
    result = trained(diverging(paths), paths)
    weights = "of step 2, the last: step 1 had a lower validation loss, but its checkpoint cannot be used"
    assert f"| Weights | {weights} |" in (result / "README.md").read_text()
    assert "rank-00000.safetensors" in section("Checkpoints refused", (result / "report.html").read_text())
    assert loss_after(result) == evaluations(paths)[2]


def a_directory(path: Path, model: LlamaForCausalLM) -> None:
    model.save_pretrained(path)
    a_tokenizer().save_pretrained(path)


def worse(paths: Paths, **evaluation: Any) -> TrainingConfig:
    """A job whose one step is so long that the model is worse after it."""
    job = a_job(**LEARNING | {"maxSteps": 1, "learningRate": 10})
    return job.model_copy(update={"evaluation": job.evaluation.model_copy(update=evaluation)})


def test_a_run_that_made_the_model_worse_says_so_and_praises_no_step(paths: Paths):
    result = trained(worse(paths), paths)
    (event,) = (event for event in events(paths) if event["event"] == "not_improved")
    assert event["reason"] == "LossRose"
    for page in ((result / "README.md").read_text(), (result / "report.html").read_text()):
        assert event["message"] in page
        assert "lowest validation loss" not in page
        assert "of step 1, the last, whose validation loss rose least" in page


def test_a_run_that_must_improve_and_does_not_ends_without_a_result_and_one_that_need_not_exports_it(paths: Paths):
    with pytest.raises(NotImprovedError, match=r"rose from .*requireImprovement asks.*resumeFrom: '1' exports"):
        trained(worse(paths, require_improvement=True), paths)
    assert not paths.export.exists()
    dist.destroy_process_group()
    assert (trained(worse(paths), paths) / "model.safetensors").exists()
    assert evaluations(paths).keys() == {0, 1}, "nothing was trained again"


def test_a_run_that_improved_says_so_in_the_card(paths: Paths):
    card = (trained(a_job(**LEARNING | {"maxSteps": 6, "learningRate": 0.01}), paths) / "README.md").read_text()
    before, *_, after = evaluations(paths).values()
    assert after < before
    assert f"| Improvement | held-out loss fell from {before:.4g} to {after:.4g} |" in card
    assert "| Records | all 12 records are used |" in card


def test_a_run_without_validation_trains_measures_nothing_and_claims_nothing(paths: Paths):
    job = a_job(**LEARNING)
    job = job.model_copy(update={"data": job.data.model_copy(update={"validation_fraction": 0})})
    trained(job, paths)
    result = trained(job, paths)
    assert not evaluations(paths)
    assert len([event for event in events(paths) if event["event"] == "step"]) == 2, "nothing was trained again"
    card = (result / "README.md").read_text()
    assert "| Improvement | no held-out loss was measured |" in card
    assert "| train.records | 12 |" in card
    assert "- It was not evaluated: no record was held out." in card
    assert json.loads((result / "evaluation.json").read_text()) == {"after": {}, "answers": [], "before": {}}


def test_fields_that_nothing_was_made_of_are_told_by_event_card_and_report(paths: Paths):
    write_jsonl(paths, "train/a.jsonl", [each | {"mood": "calm"} for each in texts(12)])
    result = trained(a_job(**LEARNING), paths)
    (event,) = (event for event in events(paths) if event["event"] == "records_left_out")
    assert (event["reason"], event["message"]) == ("FieldsUnused", "of 12 records fields not used: 'mood' (12)")
    for page in ((result / "README.md").read_text(), (result / "report.html").read_text()):
        assert "fields not used: " in page


def test_a_batch_of_more_rows_than_there_are_is_told(paths: Paths):
    result = trained(a_job(**LEARNING | {"globalBatchSize": 64, "epochs": 1, "maxSteps": None}), paths)
    (event,) = (event for event in events(paths) if event["event"] == "rows_repeated")
    assert "globalBatchSize 64 is more than the" in event["message"]
    assert event["message"] in (result / "README.md").read_text()


def test_a_warm_up_that_the_run_would_never_come_through_is_refused_before_it_trains(paths: Paths):
    with pytest.raises(ConfigError, match="warmupSteps: 3 is more than the 2 steps"):
        trained(a_job(**LEARNING, warmupSteps=3), paths)
    assert not (paths.logs / "events.jsonl").exists()


def test_the_default_rate_of_adapters_is_in_the_card(paths: Paths):
    a_gguf(paths.claim("models", "base"), tiny_model(), a_tokenizer())
    parts = {"model": ModelSpec(base=A_BASE), "method": MethodSpec(type=MethodType.LORA)}
    job = a_job(**{name: value for name, value in LEARNING.items() if name != "learningRate"})
    assert "| learningRate | 0.0002 |" in (trained(job.model_copy(update=parts), paths) / "README.md").read_text()


def test_an_early_stop_is_told_also_by_the_run_after_it(paths: Paths):
    job = a_job(**LEARNING | {"maxSteps": 30, "learningRate": 3, "earlyStopping": {"patience": 1}})
    trained(job, paths)
    result = trained(job, paths)
    event, again = (event for event in events(paths) if event["event"] == "stopped_early")
    assert event["message"] == again["message"]
    assert "of 30: validation loss has not fallen for 1 evaluation" in event["message"]
    assert f"| End | {event['message']} |" in (result / "README.md").read_text()


def test_a_base_with_nan_is_refused_by_the_name_of_its_weight_before_anything_is_measured(paths: Paths):
    base = tiny_model()
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight[3, 1] = math.inf
    a_directory(paths.claim("models", "base"), base)
    job = a_job(**LEARNING).model_copy(update={"model": ModelSpec(base=A_BASE)})
    with pytest.raises(ConfigError, match=r"weight 'model\.layers\.0\.mlp\.up_proj\.weight' is not finite"):
        trained(job, paths)
    assert not (paths.logs / "events.jsonl").exists()


def test_a_model_that_overflows_though_its_weights_are_finite_is_refused_before_the_first_step(paths: Paths):
    base = tiny_model()
    with torch.no_grad():
        base.model.norm.weight.fill_(3e38)
    a_directory(paths.claim("models", "base"), base)
    job = a_job(**LEARNING).model_copy(update={"model": ModelSpec(base=A_BASE)})
    with pytest.raises(ConfigError, match=r"loss of the untrained model is (nan|inf), though its weights are finite"):
        trained(job, paths)


def test_weights_whose_loss_is_not_finite_are_no_result(paths: Paths, monkeypatch: pytest.MonkeyPatch):
    measure = loop.Loop.measure

    def broken(self: loop.Loop) -> Any:
        result = measure(self)
        self.evaluation = replace(result, loss=math.nan) if self.state.step else result
        return self.evaluation

    monkeypatch.setattr(loop.Loop, "measure", broken)
    with pytest.raises(NotFiniteError, match="loss of the weights of step 2 is not finite"):
        trained(a_job(**LEARNING), paths)
    assert not paths.export.exists()


def test_settings_that_changed_since_the_checkpoint_are_in_the_report(paths: Paths):
    title = "Settings changed since the checkpoint"
    for weight_decay, is_reported in ((0.1, False), (0.1, False), (0.2, True)):
        report = (trained(a_job(**LEARNING, weightDecay=weight_decay), paths) / "report.html").read_text()
        assert ("<td>2</td>" in section(title, report)) is is_reported


def test_a_run_measures_answers_and_labels_before_and_after_training(paths: Paths):
    records = [{"prompt": word, "response": word} for _ in range(8) for word in ("yes", "no")]
    write_jsonl(paths, "train/a.jsonl", records)
    result = trained(classifying(a_job(**LEARNING | {"maxSteps": 70, "learningRate": 0.02, "warmupSteps": 0})), paths)
    scores = json.loads((result / "evaluation.json").read_text())
    before, after = scores["before"], scores["after"]
    assert (after["classification"]["total"], after["classification"]["accuracy"]) == (6, 1.0)
    assert after["classification"]["rocAuc"] == after["classification"]["macroF1"] == 1.0
    assert after["bitsPerByte"] < before["bitsPerByte"]
    assert after["asked"] == 2
    assert {"bleu", "rouge1", "rouge2", "rougeL"} <= before.keys() & after.keys()
    (outcome,) = (event for event in events(paths) if event["event"] == "result")
    for scores in (before, after):
        assert scores["classification"].pop("labels") == ["yes", "no"]
    expected = after["classification"], before
    assert (outcome["classification"], outcome["before"]) == expected, "all but the classes' names"
    assert outcome["bleuSignature"].startswith("nrefs:1|case:mixed|eff:yes|tok:13a")
    for page in ((result / "README.md").read_text(), (result / "report.html").read_text()):
        assert outcome["bleuSignature"] in page
        assert "right / chosen" in page
        assert "classification.rocAuc" in page


def diverging(paths: Paths) -> TrainingConfig:
    """A job held to letters that it never reads: the more it learns, the worse it does; the best is not the last."""
    write_jsonl(paths, "other/a.jsonl", [{"text": "ZYXWVU TSRQP NMLKJ HGFEC"}])
    parts = a_job(**LEARNING | {"learningRate": 0.05}).model_dump(mode="json", by_alias=True, exclude_none=True)
    places = {name: {"claimName": CLAIM, "path": path} for name, path in (("train", "train"), ("validation", "other"))}
    return TrainingConfig.model_validate(parts | {"data": places | {"sequenceLength": 64}})


def classifying(job: TrainingConfig) -> TrainingConfig:
    """`job` on Instruction data of which the same records are held out, and six of them are classified."""
    parts = job.model_dump(mode="json", by_alias=True, exclude_none=True)
    place = {"claimName": CLAIM}
    parts["data"] = {"format": "Instruction", "sequenceLength": 64, "train": place, "validation": place}
    parts["evaluation"] |= {"labels": ["yes", "no"], "maxRows": 6, "intervalSteps": 100}
    parts["checkpoint"] = {"interval": {"steps": 100}}
    return TrainingConfig.model_validate(parts)


def test_what_auto_chose_is_reported_by_one_event_and_by_the_card(paths: Paths):
    job = a_job(**LEARNING | {"maxSteps": 1}).model_copy(update={"method": MethodSpec(type=MethodType.AUTO)})
    trained(job, paths)
    result = trained(job, paths)
    choices = [event for event in events(paths) if event["event"] == "method"]
    assert [(event["type"], event["records"]) for event in choices] == [("Full", 7)]
    assert "| Method | all weights (Auto, for 7 training records; strategy DDP) |" in (result / "README.md").read_text()


def test_a_qlora_job_goes_from_a_gguf_file_to_a_whole_model_and_an_adapter(paths: Paths):
    base = {"model": ModelSpec(base=A_BASE)}
    qlora = {"method": MethodSpec(type=MethodType.QLORA), "export": ExportSpec(formats=("Merged", "Adapter"))}
    original = tiny_model(hidden_size=64, head_dim=16)  # whole blocks of NF4 in each row
    a_gguf(paths.claim("models", "base"), original, a_tokenizer())
    result = trained(a_job(**LEARNING).model_copy(update=base | qlora), paths)
    assert {"model.safetensors", "adapter", "README.md"} <= {path.name for path in result.iterdir()}
    assert "| Method | QLoRA, rank 16, " in (result / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(result)
    assert model.num_parameters() == original.num_parameters()


@pytest.mark.parametrize("type_", ["Full", "LoRA"])
def test_a_preference_job_prefers_after_training_what_was_chosen_and_says_so_everywhere(paths: Paths, type_: str):
    a_gguf(paths.claim("models", "base"), tiny_model(), a_tokenizer())
    write_jsonl(paths, "train/a.jsonl", pairs(12))
    job = preferring(a_job(**LEARNING | {"maxSteps": 12, "learningRate": 0.01, "warmupSteps": 0}), type_)
    result = trained(job, paths)
    scores = json.loads((result / "evaluation.json").read_text())
    before, after = scores["before"], scores["after"]
    assert (before["loss"], before["rewardAccuracy"], before["rewardMargin"]) == (pytest.approx(math.log(2)), 0.5, 0.0)
    assert (after["rewardAccuracy"], after["asked"]) == (1.0, 2)
    assert after["loss"] < before["loss"]
    assert after["rewardMargin"] > 0
    assert not {"perplexity", "bitsPerByte"} & after.keys(), "they are of tokens"
    assert scores["answers"][0]["reference"].startswith("Rest")
    evaluations = [event for event in events(paths) if event["event"] == "evaluation"]
    assert [event["rewardAccuracy"] for event in (evaluations[0], evaluations[-1])] == [0.5, 1.0]
    card, report = (result / "README.md").read_text(), (result / "report.html").read_text()
    assert "| Objective | DPO (arXiv:2305.18290), beta 0.2, the base model as the reference |" in card
    assert "| rewardAccuracy | 0.5 | 1 |" in card
    assert "Loss [nats/pair]" in report
    assert report.count("<svg") == 6, "also of accuracy and margin"


def test_a_job_prefers_by_odds_without_a_reference_and_its_card_says_so(paths: Paths):
    a_gguf(paths.claim("models", "base"), tiny_model(), a_tokenizer())
    write_jsonl(paths, "train/a.jsonl", pairs(12))
    settings = LEARNING | {"maxSteps": 12, "learningRate": 0.01, "warmupSteps": 0}
    job = preferring(a_job(**settings), "Full", {"loss": "ORPO", "oddsRatioWeight": 0.5})
    result = trained(job, paths)
    scores = json.loads((result / "evaluation.json").read_text())
    assert scores["after"]["rewardAccuracy"] == 1.0
    assert scores["after"]["loss"] < scores["before"]["loss"]
    card = (result / "README.md").read_text()
    assert "| Objective | ORPO (arXiv:2403.07691), lambda 0.5, without a reference model |" in card
    assert "\n- orpo\n" in card


def preferring(job: TrainingConfig, type_: str, preference: dict[str, Any] | None = None) -> TrainingConfig:
    """`job` on pairs of answers, with the base model at `models/base`."""
    data = {"train": {"claimName": CLAIM}, "format": "Preference", "sequenceLength": 128, "validationFraction": 0.3}
    parts = job.model_dump(mode="json", by_alias=True, exclude_none=True)
    parts |= {"data": data, "model": {"base": {"claimName": "models", "path": "base"}}}
    return TrainingConfig.model_validate(parts | {"method": {"type": type_, "preference": preference or {"beta": 0.2}}})


def damage(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def section(title: str, report: str) -> str:
    return report.partition(f"<h2>{title}</h2>")[2].partition("<h2>")[0]


def loss_after(result: Path) -> float:
    return float(json.loads((result / "evaluation.json").read_text())["after"]["loss"])


def evaluations(paths: Paths) -> dict[int, float]:
    """Validation loss by step, as reported while training."""
    return {event["step"]: event["loss"] for event in events(paths) if event["event"] == "evaluation"}


def test_the_last_weights_are_evaluated_once(paths: Paths, monkeypatch: pytest.MonkeyPatch):
    evaluated = []
    measure = loop.Loop.measure
    monkeypatch.setattr(loop.Loop, "measure", lambda self: evaluated.append(self.state.step) or measure(self))
    result = trained(a_job(**LEARNING), paths)
    assert evaluated == [0, 1, 2]
    assert loss_after(result) == evaluations(paths)[2]


def test_a_stop_ends_the_first_evaluation_and_the_next_run_begins_with_it(paths: Paths):
    job, stop = a_job(**LEARNING), StopFlag()
    stop.since = 0.0
    with pytest.raises(StopRequested):
        trained(job, paths, stop)
    assert not evaluations(paths)
    trained(job, paths)
    assert evaluations(paths).keys() == {0, 1, 2}


def memory_for(rows: int, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a micro-batch of more than `rows` is too much, once `after` steps are done."""
    steps: list[float] = []

    def short_of_memory(learner: TorchLearner, batches: Sequence[TokenBatch], targets: float, *more: Any) -> Tensor:
        if len(batches[0].tokens_BT) > rows and len(steps) >= after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        steps.append(targets)
        return ACCUMULATE(learner, batches, targets, *more)

    monkeypatch.setattr(TorchLearner, "accumulate", short_of_memory)


def test_a_run_that_lacks_memory_goes_on_from_its_checkpoint_with_less_and_so_does_the_next_attempt(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = a_job(**LEARNING | {"maxSteps": 4, "globalBatchSize": 4, "microBatchSize": 4})
    saves_at_once = job.checkpoint.model_copy(update={"asynchronous": False})  # no thread outlives its run
    job = job.model_copy(update={"checkpoint": saves_at_once})
    memory_for(2, 1, monkeypatch)
    with pytest.raises(AdaptingError, match=r"Tried to allocate 2 GiB; the ranks start again with microBatchSize 2"):
        trained(job, paths)
    dist.destroy_process_group()
    memory_for(1, 2, monkeypatch)
    with pytest.raises(AdaptingError, match="microBatchSize 1"):
        trained(job, paths)
    dist.destroy_process_group()
    monkeypatch.setenv(ENV_RUN_ID, "uid-2")
    prepare(job, paths, data_vault(job, paths), "uid-2")
    fresh = Paths(paths.root, tmp_path / "another pod's scratch")
    fresh.scratch.mkdir()
    memory_for(2, 0, monkeypatch)
    result = trained(job, fresh)
    rungs = [(event["step"], event["rung"]) for event in events(paths) if event["event"] == "adapted"]
    assert rungs == [(1, 1)], "the checkpoint of rung 1 has recorded it"
    assert not [event for event in events(paths) if event["event"] == "config_changed"]
    assert "| microBatchSize | 2 |" in (result / "README.md").read_text()
    assert "microBatchSize" in section("Adapted to the memory", (result / "report.html").read_text())


def test_a_run_that_has_nothing_left_ends_and_says_what_to_change(paths: Paths, monkeypatch: pytest.MonkeyPatch):
    memory_for(0, 0, monkeypatch)
    last = {"microBatchSize": 1, "recompute": "Full", "logitsMebibytes": 32, "optimizer": "AdamW8bit"}
    with pytest.raises(OutOfMemoryError, match=r"even with microBatchSize 1, recompute Full.*hint: lower data"):
        trained(a_job(**LEARNING, **last), paths)
    assert Scratch(paths.scratch).rungs == 0


def a_mix(weight: float = 1, **optimization: Any) -> TrainingConfig:
    """A job of two small sources, one of them with at least 60 % of the rows."""
    places = [{"name": name, "claimName": CLAIM, "path": f"train/{name}.jsonl"} for name in ("ours", "theirs")]
    sources = [places[0] | {"minimumShare": 0.6}, places[1] | {"weight": weight}]
    data = {"sources": sources, "curriculum": {}, "sequenceLength": 64, "validationFraction": 0.3}
    job = a_job(**LEARNING | {"globalBatchSize": 5, "warmupSteps": 0} | optimization)
    return job.model_copy(update={"data": DataSpec.model_validate(data)})


def test_a_job_of_two_sources_resumes_as_if_it_had_never_stopped_and_tells_what_each_gave(paths: Paths, tmp_path: Path):
    elsewhere = Paths(tmp_path / "elsewhere", tmp_path / "other scratch")
    elsewhere.scratch.mkdir()
    for place in (paths, elsewhere):
        for name in ("ours", "theirs"):
            write_jsonl(place, f"train/{name}.jsonl", [{"text": f"{name} {each['text']}"} for each in texts(12)])
    trained(a_mix(maxSteps=4), paths)
    trained(a_mix(maxSteps=2), elsewhere)
    result = trained(a_mix(maxSteps=4), elsewhere)
    assert (step := evaluations(elsewhere)) == evaluations(paths)
    assert step.keys() == {0, 1, 2, 3, 4}
    card = (result / "README.md").read_text()
    rows = int(card.partition("| sources.ours.rows | ")[2].partition(" ")[0])
    assert "| sources.ours.share | 0.6 |" in card
    assert f"| sources.ours.passes | {round(0.6 * 20 / rows, 2)} |" in card
    with pytest.raises(DataError, match="nor with other shares or another order"):
        trained(a_mix(weight=0.01, maxSteps=6), elsewhere)


def a_balanced_job(**optimization: Any) -> TrainingConfig:
    """A job of two classes, of which one has a twentieth of the records."""
    place = {"claimName": CLAIM, "path": "train/mail.jsonl"}
    data = {"train": place, "balanceBy": "kind", "sequenceLength": 64, "validation": place}
    job = a_job(**LEARNING | {"globalBatchSize": 5, "warmupSteps": 0} | optimization)
    return job.model_copy(update={"data": DataSpec.model_validate(data)})


def test_a_job_of_balanced_classes_resumes_as_if_it_had_never_stopped_and_tells_what_each_gave(
    paths: Paths, tmp_path: Path
):
    elsewhere = Paths(tmp_path / "elsewhere", tmp_path / "other scratch")
    elsewhere.scratch.mkdir()
    for place in (paths, elsewhere):
        records = [{"text": f"mail {i:02} says no", "kind": "spam" if i == 7 else "ham"} for i in range(20)]
        write_jsonl(place, "train/mail.jsonl", records)
    trained(a_balanced_job(maxSteps=4), paths)
    trained(a_balanced_job(maxSteps=2), elsewhere)
    result = trained(a_balanced_job(maxSteps=4), elsewhere)
    assert (step := evaluations(elsewhere)) == evaluations(paths)
    assert step.keys() == {0, 1, 2, 3, 4}
    card = (result / "README.md").read_text()
    assert "| classes.ham.records | 19 |" in card
    assert "| classes.spam.records | 1 |" in card


def a_rank(root: Path, resume_from: str, base: str | None = None, **parts: Any) -> Rank:
    """A rank of job "uid"."""
    job = a_job()
    policy = job.checkpoint.model_copy(update={"resume_from": resume_from})
    config = job.model_copy(update={"checkpoint": policy} | parts)
    prepared: Any = SimpleNamespace(counts={"train": SimpleNamespace(records=9)})
    flags = StopFlag(), ProfileFlag()
    return Rank(config, Paths(root), ALONE, *flags, NOT_ASKED, prepared, a_store(root), base, dimensions=None)


def saved_by(root: Path, run_id: str, *steps: int, parts: Mapping[str, Any] = MappingProxyType({}), **origin: Any):
    """Leave checkpoints of a job that differs from `a_job()` in `parts`."""
    store, uid = a_store(root), run_id.rpartition("-")[0]
    legs = legs_from(None, uid, a_job().model_copy(update=dict(parts)))
    for step in steps:
        store.save(step, a_state(step), {"jobUid": uid, "legs": [leg.to_json() for leg in legs]} | origin)


@pytest.mark.parametrize(
    ("resume_from", "saver", "step"),
    [
        ("Latest", "another-1", 3),
        ("2", "another-1", 2),
        ("None", "another-1", None),
        ("2", RUN_ID, 3),
        ("None", RUN_ID, 3),
    ],
)
def test_a_job_resumes_where_its_file_says_until_it_has_checkpoints_of_its_own(
    paths: Paths, resume_from: str, saver: str, step: int | None
):
    saved_by(paths.root, saver, 1, 2, 3)
    found = checkpoint_to_resume(a_rank(paths.root, resume_from))
    assert (found and found.step) == step


OLD, NEW = "a" * 64, "b" * 64
BESIDE_BASE = {
    "adapters": {"method": MethodSpec(type=MethodType.LORA)},
    "adapters that Auto chose": {"method": MethodSpec(type=MethodType.AUTO), "model": ModelSpec(base=A_BASE)},
    "some layers": {"method": MethodSpec(frozen_layers=1)},
    "pairs": {"data": DataSpec(train=VolumePath(claim_name=CLAIM), format=DataFormat.PREFERENCE)},
}


@pytest.mark.parametrize("resume_from", ["Latest", "2"])
@pytest.mark.parametrize("name", BESIDE_BASE)
def test_what_was_learned_beside_another_base_is_refused(paths: Paths, name: str, resume_from: str):
    saved_by(paths.root, "another-1", 1, 2, parts=BESIDE_BASE[name], baseDigest=OLD)
    with pytest.raises(ConfigError) as caught:
        checkpoint_to_resume(a_rank(paths.root, resume_from, NEW, **BESIDE_BASE[name]))
    old, new = map(a_vault(paths.root).name_of, (OLD, NEW))
    assert str(caught.value) == (
        f"the checkpoint of step 2 was trained beside the base model {old}, the job's is {new} (hint: give model.base "
        "and model.adapter back what they held, or start over: checkpoint.resumeFrom: None)"
    )
    assert caught.value.code == 64
    assert checkpoint_to_resume(a_rank(paths.root, resume_from, OLD, **BESIDE_BASE[name]))
    assert checkpoint_to_resume(a_rank(paths.root, "None", NEW, **BESIDE_BASE[name])) is None


def test_all_weights_are_trained_on_whatever_the_base_is_now(paths: Paths):
    saved_by(paths.root, RUN_ID, 1, baseDigest=OLD)
    assert checkpoint_to_resume(a_rank(paths.root, "Latest", NEW))


def test_what_an_earlier_job_learned_from_another_base_is_trained_on_only_when_asked_for(paths: Paths):
    saved_by(paths.root, "another-1", 1, baseDigest=OLD)
    old, new = map(a_vault(paths.root).name_of, (OLD, NEW))
    with pytest.raises(ConfigError, match=rf"now SHA-256 of model.base and model.adapter: '{new}' instead of '{old}'"):
        checkpoint_to_resume(a_rank(paths.root, "Latest", NEW))
    assert checkpoint_to_resume(a_rank(paths.root, "1", NEW))


def test_a_checkpoint_that_does_not_know_its_base_serves_any(paths: Paths):
    """Those of earlier versions do not."""
    saved_by(paths.root, "another-1", 1, parts=BESIDE_BASE["adapters"])
    assert checkpoint_to_resume(a_rank(paths.root, "Latest", NEW, **BESIDE_BASE["adapters"]))


def test_adapters_are_not_trained_on_once_their_base_is_replaced(paths: Paths):
    job = a_job(**LEARNING | {"maxSteps": 1}).model_copy(
        update={"model": ModelSpec(base=A_BASE), "method": MethodSpec(type=MethodType.LORA)}
    )
    base = paths.claim("models", "base")
    a_gguf(base, tiny_model(), a_tokenizer())
    digests = [digest_of(base)]
    trained(job, paths)
    a_gguf(base, tiny_model(seed=1), a_tokenizer())
    digests.append(digest_of(base))
    with pytest.raises(ConfigError, match=rf"of step 1 was trained beside the base model {digests[0]}, .*{digests[1]}"):
        trained(job, paths)


def test_resuming_from_a_step_that_there_is_not_names_those_that_there_are(paths: Paths):
    saved_by(paths.root, "another-1", 1, 2)
    with pytest.raises(ConfigError, match=r"no checkpoint of step 7 .*there are: 1, 2"):
        checkpoint_to_resume(a_rank(paths.root, "7"))


def test_resuming_from_an_older_step_is_the_way_out_of_a_missing_newest_one(
    paths: Paths,
):
    saved_by(paths.root, "another-1", 1, 2)
    shutil.rmtree(paths.root / "checkpoints" / "step-00000002")
    with pytest.raises(IntegrityError, match="is missing"):
        checkpoint_to_resume(a_rank(paths.root, "Latest"))
    found = checkpoint_to_resume(a_rank(paths.root, "1"))
    assert found is not None
    assert found.step == 1


def test_a_later_attempt_does_not_pass_over_its_own_missing_checkpoint(paths: Paths, monkeypatch: pytest.MonkeyPatch):
    saved_by(paths.root, RUN_ID, 1, 2)
    shutil.rmtree(paths.root / "checkpoints" / "step-00000002")
    monkeypatch.setenv(ENV_RUN_ID, "uid-2")
    with pytest.raises(IntegrityError, match="is missing"):
        checkpoint_to_resume(a_rank(paths.root, "1"))
