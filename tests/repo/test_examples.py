"""What is shipped in examples/: each file is valid, finds its data, and asks only what it teaches."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepseek_operator.api.names import API_VERSION, KIND, PROFILE_KIND
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.spec import JobSpec
from deepseek_trainer.base_model.families import scratch_dimensions
from deepseek_trainer.contract.rules import unknown_fields

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS: dict[str, type[JobSpec | ProfileSpec]] = {KIND: JobSpec, PROFILE_KIND: ProfileSpec}
FILES = sorted(EXAMPLES.glob("*.yaml"))
DOCUMENTS = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}
JOBS = {name: document for name, document in DOCUMENTS.items() if document["kind"] == KIND}
PROFILES = {document["metadata"]["name"] for document in DOCUMENTS.values() if document["kind"] == PROFILE_KIND}


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / "handbook" / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claim that examples/digits.py writes."""
    claim = tmp_path_factory.mktemp("examples") / "digits"
    subprocess.run([sys.executable, EXAMPLES / "digits.py", claim], check=True, capture_output=True)
    return claim


@pytest.mark.parametrize("name", DOCUMENTS)
def test_example_is_valid_and_has_no_unknown_field(name: str) -> None:
    document = DOCUMENTS[name]
    model = MODELS[document["kind"]]
    assert document["apiVersion"] == API_VERSION
    assert list(unknown_fields(model, document["spec"])) == []
    model.model_validate(document["spec"])


@pytest.mark.parametrize("name", JOBS)
def test_example_job_is_named_as_its_file_and_finds_profile_and_data(name: str, written: Path) -> None:
    spec = JobSpec.model_validate(JOBS[name]["spec"])
    assert JOBS[name]["metadata"]["name"] == name
    assert spec.trainer.profile is None or spec.trainer.profile in PROFILES
    assert spec.data.validation is not None
    for place in spec.data.places:
        assert (written / place.path if name == "digits" else EXAMPLES / place.claim_name / place.path).exists()


def test_handbook_holds_out_a_phrasing_of_each_fact_that_training_never_sees() -> None:
    train, held_out = records("train.jsonl"), records("validation.jsonl")
    assert {record["response"] for record in train} == {record["response"] for record in held_out}
    assert {record["prompt"] for record in train}.isdisjoint(record["prompt"] for record in held_out)
    assert len({record["prompt"] for record in train + held_out}) == len(train) + len(held_out)


@pytest.mark.parametrize("record", records("validation.jsonl"), ids=lambda record: record["mustContain"][0])
def test_handbook_question_is_answered_by_its_reference_alone_and_not_given_away(record: dict[str, Any]) -> None:
    required = record["mustContain"]
    answers = [other["response"] for other in records("validation.jsonl")]
    right = [answer for answer in answers if all(phrase in answer for phrase in required)]
    assert right == [record["response"]]
    assert not any(phrase.lower() in record["prompt"].lower() for phrase in required)


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_handbook_pairs_choose_its_answers_over_those_that_say_nothing_of_it(name: str) -> None:
    asked, pairs = records(name), records(f"pairs-{name}")
    assert [(pair["prompt"], pair["chosen"]) for pair in pairs] == [
        (each["prompt"], each["response"]) for each in asked
    ]
    facts = [phrase.lower() for each in records("validation.jsonl") for phrase in each["mustContain"]]
    assert not any(fact in pair["rejected"].lower() for fact in facts for pair in pairs)


@pytest.mark.parametrize("name", ["lora-smollm2", "qlora-smollm2"])
def test_example_with_adapters_asks_every_held_out_question(name: str) -> None:
    spec = JobSpec.model_validate(JOBS[name]["spec"])
    assert spec.evaluation.generations == len(records("validation.jsonl"))


def test_examples_with_adapters_differ_in_the_method_and_the_length_of_the_run_only() -> None:
    lora, qlora = (JOBS[name]["spec"] for name in ("lora-smollm2", "qlora-smollm2"))
    changed = {f"{part}.{field}" for part in lora for field in lora[part] if lora[part][field] != qlora[part][field]}
    assert [part.keys() for part in lora.values()] == [part.keys() for part in qlora.values()]
    assert changed == {"method.type", "optimization.maxSteps", "optimization.learningRate", "evaluation.intervalSteps"}


def test_the_preset_is_the_size_that_it_says_and_spends_its_time() -> None:
    spec = JobSpec.model_validate(JOBS["pretrain-120m"]["spec"])
    assert spec.model.architecture is not None
    assert scratch_dimensions(spec.model.architecture).parameters == 119_672_064
    assert (spec.optimization.max_minutes, spec.optimization.max_steps, spec.optimization.epochs) == (120, None, None)
