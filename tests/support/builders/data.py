"""Small valid data, configurations and places for tests of the data road."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from deepseek_trainer import tasks
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.names import ENV_RUN_ID, Paths
from deepseek_trainer.data import dataset, preparation
from deepseek_trainer.storage.vault import Vault
from deepseek_trainer.tasks.language.prompts import Prompt

CLAIM = "corpus"
RUN_ID = "uid-1"
RUN = {ENV_RUN_ID: RUN_ID}

TINY_MODEL = {
    "architecture": {"hiddenSize": 16, "numLayers": 1, "numHeads": 2, "intermediateSize": 32, "vocabSize": 300}
}


def a_data_spec(**changes: Any) -> DataSpec:
    """Text from the claim's root, rows of 32 tokens; `changes` in the job file's own names."""
    return DataSpec.model_validate({"train": {"claimName": CLAIM}, "sequenceLength": 32} | changes)


def a_config(*, seal: bool = False, model: Mapping[str, Any] = TINY_MODEL, **data: Any) -> TrainingConfig:
    """A job on one node that trains a tiny model from scratch."""
    encryption = {"encryption": {"keyRef": {"secretName": "keys"}}} if seal else {}
    return TrainingConfig.model_validate(
        {
            "job": {"namespace": "ml", "name": "demo"},
            "numNodes": 1,
            "numProcPerNode": 1,
            "model": model,
            "data": a_data_spec(**data).model_dump(mode="json", by_alias=True, exclude_none=True),
            "method": {},
            "optimization": {},
            "checkpoint": encryption,
            "evaluation": {},
            "export": {},
        }
    )


@dataclass(frozen=True, slots=True)
class Opened(dataset.Prepared[Any]):
    """Prepared data with what their language task keeps beside the rows."""

    tokenizer: PreTrainedTokenizerFast
    prompts: tuple[Prompt, ...]


def prepare(config: TrainingConfig, paths: Paths, vault: Vault, run_id: str) -> Path:
    """As node 0 prepares the job's data; their directory."""
    return preparation.prepare(config, paths, vault, run_id, tasks.preparer(config))


def open_prepared(
    config: TrainingConfig, paths: Paths, vault: Vault, environ: Mapping[str, str] = os.environ
) -> Opened:
    """As each rank opens them."""
    directory = dataset.prepared_directory(paths, vault, environ)
    task: Any = tasks.of(config, paths, vault, directory)
    found = dataset.open_prepared(config, directory, vault, task)
    rows = {each.name: getattr(found, each.name) for each in fields(found)}
    return Opened(**rows, tokenizer=task.tokenizer, prompts=task.prompts)


def some_paths(root: Path) -> Paths:
    """A worker's volumes below `root`, with an empty data claim."""
    paths = Paths(root)
    paths.claim(CLAIM).mkdir(parents=True)
    return paths


def put_key(paths: Paths) -> None:
    """The key-encryption key, where the kubelet would mount it."""
    paths.key_dir.mkdir(parents=True)
    key = paths.key_dir / "kek"
    key.touch(0o600)
    key.write_bytes(bytes(range(32)))


def write_jsonl(paths: Paths, name: str, records: list[Any]) -> Path:
    return write_text(paths, name, "".join(f"{json.dumps(record)}\n" for record in records))


def write_text(paths: Paths, name: str, text: str) -> Path:
    path = paths.claim(CLAIM, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def questions(count: int) -> list[dict[str, str]]:
    """Instruction records, all different, of a few lengths."""
    says = ["be early", "be kind, and be kind again", "rest", "ask before you change what others rely on"]
    return [{"prompt": f"What is rule {i}?", "response": f"Rule {i} says: {says[i % 4]}."} for i in range(count)]


def pairs(count: int) -> list[dict[str, str]]:
    """Preference records, all different: the short answer is chosen."""
    return [
        {"prompt": f"Rule {i}?", "chosen": f"Rest {i}.", "rejected": f"Rest {i}, rest, rest."} for i in range(count)
    ]


def texts(count: int) -> list[dict[str, str]]:
    """Text records, all different, of 1 to 30 words."""
    return [{"text": " ".join(f"word{i}" for _ in range(1 + i * 7 % 30))} for i in range(count)]
