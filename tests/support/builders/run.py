"""Whole runs of tiny jobs in this process, from texts to an exported model."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.names import (
    ENV_METRICS_PORT,
    ENV_NODE_ADDRESS,
    ENV_RUN_ID,
    Paths,
)
from deepseek_trainer.run.run import run
from deepseek_trainer.worker.process import ProfileFlag, StopFlag
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import CLAIM, RUN_ID, TINY_MODEL, prepare, some_paths, texts, write_jsonl


@contextmanager
def a_worker(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """The paths of a worker with data, in the environment that torchrun and the operator give it."""
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        ENV_RUN_ID: RUN_ID,
        ENV_NODE_ADDRESS: "127.0.0.1",
        ENV_METRICS_PORT: "0",
    }.items():
        monkeypatch.setenv(name, value)
    paths = Paths(some_paths(root).root, root / "scratch")
    paths.scratch.mkdir()
    write_jsonl(paths, "train/a.jsonl", texts(12))
    yield paths
    if dist.is_initialized():  # a run that failed does not leave the group
        dist.destroy_process_group()


def a_job(**optimization: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "job": {"namespace": "ml", "name": "demo"},
            "numNodes": 1,
            "numProcPerNode": 1,
            "model": TINY_MODEL,
            "data": {"train": {"claimName": CLAIM}, "sequenceLength": 64, "validationFraction": 0.3},
            "method": {},
            "optimization": optimization,
            "checkpoint": {"interval": {"steps": 1}},
            "evaluation": {"intervalSteps": 1, "generations": 2, "maxNewTokens": 2},
            "export": {},
        }
    )


def trained(config: TrainingConfig, paths: Paths, stop: StopFlag | None = None) -> Path:
    """The result of a run of `config`."""
    paths.config.parent.mkdir(parents=True, exist_ok=True)
    paths.config.write_text(config.model_dump_json(by_alias=True, exclude_none=True))
    prepare(config, paths, data_vault(config, paths), os.environ[ENV_RUN_ID])
    run(paths, stop or StopFlag(), ProfileFlag(), restarts=0)
    return paths.export / "demo"


def events(paths: Paths) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (paths.logs / "events.jsonl").read_text().splitlines()]
