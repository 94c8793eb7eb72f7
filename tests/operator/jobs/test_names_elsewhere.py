"""Names that people bring from other trainers, and where they are told to put them."""

import re
from typing import Any

import pytest

from deepseek_operator.jobs.spec import JobSpec
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_trainer.contract.names_elsewhere import FIELDS, VALUES, plain
from deepseek_trainer.contract.rules import paths_of, unknown_fields
from support.builders.operator import a_training_job

KNOWN = set(paths_of(JobSpec)) | {"metadata.name"}
PATH = re.compile(r"\b(?:model|data|method|optimization|checkpoint|evaluation|export|trainer|metadata)\.[\w.]*\w")


def advice(field: str, place: str = "optimization") -> str:
    (message,) = unknown_fields(JobSpec, {place: {field: 1}}, "spec")
    return message.removeprefix(f"spec.{place}.{field}: ")


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_that_a_name_leads_to_exists(name: str) -> None:
    assert name == plain(name)
    paths = PATH.findall(FIELDS[name])
    assert set(paths) <= KNOWN
    assert paths or FIELDS[name].startswith("nothing: ")


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("warmup_ratio", "optimization.warmupFraction"),
        ("template", "model.chatTemplate (Jinja text"),
        ("per_device_train_batch_size", "optimization.microBatchSize"),
        ("gradient_accumulation_steps", "optimization.globalBatchSize"),
        ("num_train_epochs", "optimization.epochs"),
        ("numTrainEpochs", "optimization.epochs"),
        ("num-train-epochs", "optimization.epochs"),
        ("bf16", "optimization.precision: BF16"),
        ("lr_scheduler_type", "optimization.schedule"),
        ("save_steps", "checkpoint.interval.steps"),
        ("eval_steps", "evaluation.intervalSteps"),
        ("lora_r", "method.lora.rank"),
        ("use_rslora", "method.lora.rankStabilized"),
        ("use_dora", "method.lora.dora"),
        ("target_modules", "method.lora.targetModules"),
        ("max_seq_length", "data.sequenceLength"),
        ("cutoff_len", "data.sequenceLength"),
        ("gradient_checkpointing", "optimization.recompute"),
        ("load_in_4bit", "method.type: QLoRA"),
        ("dpo_beta", "method.preference.beta"),
        ("orpo_alpha", "method.preference.oddsRatioWeight"),
        ("pref_loss", "method.preference.loss"),
        ("model_name_or_path", "model.base"),
        ("resume_from_checkpoint", "checkpoint.resumeFrom"),
        ("fsdp", "optimization.strategy: FSDP"),
    ],
)
@pytest.mark.parametrize("place", ["optimization", "method", "data"])
def test_a_name_of_another_trainer_gets_the_field_that_does_it_wherever_it_stands(
    field: str, path: str, place: str
) -> None:
    assert advice(field, place).startswith(f"unknown field: give {path}")


@pytest.mark.parametrize("field", ["report_to", "logging_steps", "packing"])
def test_a_name_without_a_field_is_told_what_happens_by_itself(field: str) -> None:
    assert advice(field).startswith("unknown field: nothing: ")


@pytest.mark.parametrize("field", ["num_generations", "reward_funcs", "reward_model", "ppo_epochs", "grpo"])
@pytest.mark.parametrize("place", ["optimization", "method"])
def test_a_setting_of_learning_from_rewards_is_told_that_there_is_none(field: str, place: str) -> None:
    assert advice(field, place).startswith("unknown field: nothing: a model does not learn from rewards, ")


def test_an_own_field_in_another_spelling_or_place_is_named() -> None:
    assert advice("learning_rate") == "unknown field, did you mean 'learningRate'"
    assert advice("learning_rate", "data") == "unknown field here: give optimization.learningRate"
    assert advice("rank") == "unknown field here: give method.lora.rank"
    assert advice("weightDecai") == "unknown field, did you mean 'weightDecay'"
    assert advice("xyzzy").startswith("unknown field, known: epochs, ")


def problems(**spec: Any) -> str:
    return " ".join(TrainingJob.read(a_training_job(spec)).problems)


@pytest.mark.parametrize(
    ("part", "field", "given", "meant"),
    [
        ("optimization", "schedule", "linear", "Linear"),
        ("optimization", "schedule", "cosine", "Cosine"),
        ("optimization", "schedule", "cosine_with_restarts", "CosineRestarts"),
        ("optimization", "schedule", "constant_with_warmup", "Constant"),
        ("optimization", "precision", "bf16", "BF16"),
        ("optimization", "precision", "bfloat16", "BF16"),
        ("optimization", "strategy", "zero3", "ZeRO3"),
        ("optimization", "strategy", "zero-3", "ZeRO3"),
        ("optimization", "optimizer", "adamw_torch", "AdamW"),
        ("optimization", "optimizer", "paged_adamw_8bit", "AdamW8bit"),
        ("method", "type", "lora", "LoRA"),
        ("method", "type", "qlora", "QLoRA"),
        ("data", "format", "sharegpt", "Instruction"),
        ("data", "format", "dpo", "Preference"),
    ],
)
def test_a_value_of_another_trainer_gets_the_value_that_does_it(part: str, field: str, given: str, meant: str) -> None:
    assert f"spec.{part}.{field}: " in (said := problems(**{part: {field: given}}))
    assert said.endswith(f"not '{given}', did you mean {meant}")


def test_a_value_that_nobody_knows_gets_no_advice() -> None:
    assert "did you mean" not in problems(optimization={"schedule": "zigzag"})


@pytest.mark.parametrize("name", VALUES)
def test_names_of_values_stand_without_case_and_separators(name: str) -> None:
    assert name == plain(name)
