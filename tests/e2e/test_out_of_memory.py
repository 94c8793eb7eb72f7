"""Memory that runs out on one rank, under real agents: all ranks go on with smaller micro-batches."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.base_model.families import scratch_dimensions
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.names import ENV_METRICS_PORT, ENV_NODE_INDEX, ENV_SCRATCH
from deepseek_trainer.launch import AGENT_ENV
from deepseek_trainer.worker.vaults import checkpoint_vault, data_vault
from support.builders.data import CLAIM, RUN_ID, TINY_MODEL, prepare, some_paths, texts, write_jsonl
from support.builders.worker import agent_with, variables

STEPS = 6
# Each rank trains as always, but a micro-batch of TOO_MANY[rank] rows is too much for it once it has done AFTER steps.
# The container that they share has LIMIT bytes.
RANKS = """
import os
import torch
from deepseek_trainer.budget import cgroup
from deepseek_trainer import train
from deepseek_trainer.training.torch_learner import TorchLearner
accumulate, steps = TorchLearner.accumulate, []

def short_of_memory(self, batches, targets, *more):
    if len(batches[0].tokens_BT) == TOO_MANY.get(int(os.environ["RANK"])) and len(steps) >= AFTER:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    steps.append(targets)
    return accumulate(self, batches, targets, *more)

TorchLearner.accumulate = short_of_memory
cgroup.memory_limit = lambda groups: LIMIT
train.main()
"""


class Run:
    """A job of two ranks, each of which has four rows of a step, in a directory of its own."""

    def __init__(self, root: Path, nodes: int, strategy: str = "DDP") -> None:
        self.paths, self.nodes = some_paths(root), nodes
        write_jsonl(self.paths, "train/a.jsonl", texts(12))
        self.config = TrainingConfig.model_validate(
            {
                "job": {"namespace": "ml", "name": "demo"},
                "numNodes": nodes,
                "numProcPerNode": 2 // nodes,
                "model": TINY_MODEL,
                "data": {"train": {"claimName": CLAIM}, "sequenceLength": 64, "validationFraction": 0.3},
                "method": {},
                "optimization": {
                    "maxSteps": STEPS,
                    "globalBatchSize": 8,
                    "microBatchSize": 4,
                    "warmupSteps": 0,
                    "strategy": strategy,
                },
                "checkpoint": {"interval": {"steps": 2}, "asynchronous": False},
                "evaluation": {"intervalSteps": 100, "generations": 0},
                "export": {},
            }
        )
        self.paths.config.parent.mkdir(parents=True)
        self.paths.config.write_text(self.config.model_dump_json(by_alias=True, exclude_none=True))
        prepare(self.config, self.paths, data_vault(self.config, self.paths), RUN_ID)

    def train(self, after: int = 0, too_many: dict[int, int] | None = None, limit: int | None = None) -> list[int]:
        """How the agents of all nodes end, whose ranks lack memory as RANKS says."""
        command = agent_with(f"AFTER, TOO_MANY, LIMIT = {after}, {too_many or {}}, {limit}\n{RANKS}")
        root = self.paths.root
        environ = os.environ | variables(root) | AGENT_ENV | {ENV_METRICS_PORT: "0"}
        agents = [
            subprocess.Popen(
                command, env=environ | {ENV_SCRATCH: str(root / f"scratch-{node}"), ENV_NODE_INDEX: str(node)}
            )
            for node in range(self.nodes)
        ]
        return [agent.wait(timeout=600) for agent in agents]

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.paths.logs / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    @property
    def losses(self) -> dict[int, float]:
        """By step; of a step that was done twice the last one."""
        return {event["step"]: event["loss"] for event in self.events("step")}

    @property
    def saved_rungs(self) -> int:
        store = CheckpointStore(self.paths.checkpoints, checkpoint_vault(self.config, self.paths))
        return store.latest().meta["rungs"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of a run with memory enough."""
    run = Run(tmp_path_factory.mktemp("undisturbed"), nodes=1)
    assert run.train() == [0]
    assert run.losses.keys() == {*range(1, STEPS + 1)}
    assert (run.events("adapted"), run.saved_rungs) == ([], 0)
    return run.losses


@pytest.mark.parametrize(
    ("nodes", "strategy", "lack", "adapted"),
    [
        pytest.param(1, "DDP", (0, {1: 4}), [(0, 1, 2)], id="before any checkpoint"),
        pytest.param(2, "DDP", (2, {1: 4, 0: 2}), [(2, 1, 2), (4, 2, 1)], id="in one pod, then in the other"),
        pytest.param(1, "FSDP", (2, {1: 4}), [(2, 1, 2)], id="with shards"),
    ],
)
def test_a_rank_that_lacks_memory_has_all_go_on_to_the_losses_of_an_undisturbed_run(
    tmp_path: Path,
    undisturbed: dict[int, float],
    *,
    nodes: int,
    strategy: str,
    lack: tuple[int, dict[int, int]],
    adapted: list[tuple[int, int, int]],
):
    run = Run(tmp_path, nodes, strategy)
    assert run.train(*lack) == [0] * nodes
    assert [(each["step"], each["rung"], each["microBatchSize"]) for each in run.events("adapted")] == adapted
    assert [each["step"] for each in run.events("resumed")] == [step for step, *_ in adapted if step]
    assert run.losses == pytest.approx(undisturbed, rel=1e-6)
    assert run.saved_rungs == len(adapted)


def test_a_container_that_only_shards_fit_has_the_job_begin_with_them(tmp_path: Path, undisturbed: dict[int, float]):
    run = Run(tmp_path, nodes=1)
    weights = scratch_dimensions(run.config.model.architecture).parameters
    assert run.train(limit=2 * 16 * weights - 1) == [0]  # weights, gradients and two moments of two ranks
    (adapted,) = run.events("adapted")
    assert (adapted["step"], adapted["strategy"], adapted["reason"]) == (0, "FSDP", "too large for the memory")
    assert run.losses == pytest.approx(undisturbed, rel=1e-5)
