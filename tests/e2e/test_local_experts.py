"""Models with experts and with shared layers through `dstj run`: on two ranks, stopped, gone on with, loaded back."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.storage.vault import Purpose, Vault
from support.builders.experts import a_mixture
from support.builders.local_job import EXAMPLES, Job
from support.builders.model import a_tokenizer

pytestmark = pytest.mark.timeout(180)
STEPS = 30
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def on_few_rows(spec: dict[str, Any]) -> None:
    spec["data"] |= {"sequenceLength": 32}
    spec["optimization"] |= {"maxSteps": STEPS, "globalBatchSize": 4, "strategy": "FSDP"}
    spec["checkpoint"] |= {"interval": {"steps": 10}, "retention": {"keepLast": 2, "keepBest": False}}
    spec["evaluation"] = {"intervalSteps": 15, "maxRows": 4, "generations": 0}


def from_base(spec: dict[str, Any]) -> None:
    on_few_rows(spec)
    spec["model"] = {"base": {"claimName": "base"}}


def built(family: str) -> Any:
    def change(spec: dict[str, Any]) -> None:
        on_few_rows(spec)
        spec["model"]["architecture"] |= {"family": family, "hiddenSize": 32, "intermediateSize": 64, "vocabSize": 512}

    return change


def stopped_and_gone_on(job: Job) -> None:
    run = job.start()
    job.wait_for_step(3, run)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate()
    assert run.returncode == 130, output
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert next(event for event in job.events if event["event"] == "resumed")["step"] >= 3


def as_trained(job: Job, model: PreTrainedModel) -> PreTrainedModel:
    """A `model` of the same config with what the last checkpoint holds, under the names that it has in memory."""
    (manifest,) = job.place.glob(f"work/checkpoints/step-*{STEPS}/manifest.json")
    vault = Vault(json.loads(manifest.read_text())["job"], Purpose.CHECKPOINT)
    store = CheckpointStore(job.place / "work" / "checkpoints", vault)
    info = store.latest()
    assert info is not None
    assert info.step == STEPS
    missing, unexpected = model.load_state_dict(store.load(info)[0]["model"], strict=False)
    assert not unexpected
    assert {name.rpartition(".")[2] for name in missing} <= {"weight"}
    return model.eval()


def loaded_back(job: Job) -> tuple[PreTrainedModel, dict[str, Any]]:
    return AutoModelForCausalLM.from_pretrained(job.export, output_loading_info=True)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40)[None] % 260).logits


def test_deepseek_v3_goes_on_after_a_stop_and_plain_transformers_loads_what_was_trained(tmp_path: Path):
    base = a_mixture("deepseek_v3", vocab_size=512)
    base.save_pretrained(tmp_path / "base")
    a_tokenizer().save_pretrained(tmp_path / "base")
    job = Job(tmp_path / "job", from_base, base=tmp_path / "base", texts=EXAMPLES / "texts")
    stopped_and_gone_on(job)
    found, problems = loaded_back(job)
    assert not any(problems.values()), problems
    trained = as_trained(job, base)
    assert torch.equal(logits(found), logits(trained))
    moved = dict(found.named_buffers())[BIAS]
    assert moved.abs().sum() > 0
    assert torch.equal(moved, dict(trained.named_buffers())[BIAS])
    evaluation = [event for event in job.events if event["event"] == "evaluation"][-1]
    assert 1 <= evaluation["busiestExpert"] <= 4
    assert job.losses[STEPS] < job.losses[1]


@pytest.mark.parametrize(("family", "kind"), [("DeepSeekV3", "deepseek_v3"), ("ALBERT", "llama")])
def test_families_from_scratch_are_trained_sharded_and_loaded_by_plain_transformers(
    tmp_path: Path, family: str, kind: str
):
    job = Job(tmp_path / "job", built(family))
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    found, problems = loaded_back(job)
    assert not any(problems.values()), problems
    assert found.config.model_type == kind
    assert job.losses[STEPS] < job.losses[1]
    tokens = AutoTokenizer.from_pretrained(job.export)("The Rays of Light", return_tensors="pt")
    assert found.generate(**tokens, max_new_tokens=4).shape[1] > tokens["input_ids"].shape[1]
    if family == "ALBERT":
        layers = [dict(layer.named_parameters()) for layer in found.model.layers]
        assert len(layers) == 4
        assert all(torch.equal(weight, layers[0][name]) for layer in layers[1:] for name, weight in layer.items())
        assert torch.equal(logits(as_trained(job, _only_first(found))), logits(found))


def _only_first(model: PreTrainedModel) -> PreTrainedModel:
    """A model as it trains: with one layer's weights, which the checkpoint holds, in all places."""
    from deepseek_trainer.model.shared import share_layers

    again = type(model)(model.config)
    share_layers(again)
    return again
