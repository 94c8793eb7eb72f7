"""Base models of several families through `dstj run`: trained, killed, resumed, exported and loaded back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from support.builders.families import a_directory, a_model
from support.builders.local_job import EXAMPLES, Job, short

ALL_LINEAR = {"rank": 4, "targetModules": ["all-linear"]}
STORIES = {
    "gemma2": {"type": "LoRA", "lora": ALL_LINEAR},
    "mistral with windows": {},
    "gemma3_text": {"type": "QLoRA", "lora": ALL_LINEAR},
    "phi3": {"type": "QLoRA", "lora": ALL_LINEAR},
    "gpt2": {"type": "LoRA", "lora": ALL_LINEAR},
}
USUAL, *RARER = STORIES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", [USUAL, *(pytest.param(name, marks=pytest.mark.long) for name in RARER)])
def test_a_base_of_the_family_is_trained_killed_resumed_and_exported(tmp_path: Path, variant: str):
    a_directory(tmp_path / "models" / "base", a_model(variant))

    def change(spec: dict[str, Any]) -> None:
        short(spec)
        spec["trainer"]["numNodes"] = 1
        spec["model"] = {"base": {"claimName": "models", "path": "base"}}
        spec["method"] = STORIES[variant]
        spec["data"]["sequenceLength"] = 64
        spec["optimization"] |= {"microBatchSize": 2, "maxSteps": 10}

    volumes = {"texts": EXAMPLES / "texts", "models": tmp_path / "models"}
    whole, killed = (Job(tmp_path / name, change, **volumes) for name in ("whole", "killed"))
    done = whole.run()
    assert done.returncode == 0, done.stdout + done.stderr
    running = killed.start()
    killed.wait_for_step(6, running)
    killed.kill_rank(0)
    output, _ = running.communicate()
    assert running.returncode == 0, output
    assert killed.losses == whole.losses
    models = [_loaded(job.export) for job in (whole, killed)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def _loaded(export: Path) -> Any:
    model, told = AutoModelForCausalLM.from_pretrained(export, output_loading_info=True)
    assert not any(told[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    assert model.dtype is torch.bfloat16
    return model
