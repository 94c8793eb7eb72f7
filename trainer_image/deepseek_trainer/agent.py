"""This node's torchrun agent: starts the local ranks, restarts them together, tells which failed first.

The agents of all nodes meet by c10d rendezvous on node 0.  Node addresses order the ranks, so
rank 0 is always on node 0, where /metrics and /progress are served.
"""

import os
import sys
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.names import (
    ENV_NODE_ADDRESS,
    ENV_NODE_INDEX,
    ENV_RENDEZVOUS,
    ENV_RUN_ID,
    ExitCode,
    Paths,
)
from deepseek_trainer.failure import Failure, run
from deepseek_trainer.process import die_with_parent, forbid_core_dumps
from deepseek_trainer.training_config import load_config

IN_PLACE_RESTARTS = 3  # of the ranks of one pod; after that the pod fails and the operator starts a new attempt
JOIN_TIMEOUT_S = 900  # image pulls of the slowest node


@dataclass(frozen=True, slots=True)
class Node:
    """This pod among the pods of its attempt."""

    index: int
    address: str
    rendezvous: str
    run_id: str

    @classmethod
    def from_env(cls) -> "Node":
        env = os.environ
        return cls(int(env[ENV_NODE_INDEX]), env[ENV_NODE_ADDRESS], env[ENV_RENDEZVOUS], env[ENV_RUN_ID])


def launch_config(config: TrainingConfig, node: Node) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=config.num_nodes,
        max_nodes=config.num_nodes,
        nproc_per_node=config.num_proc_per_node,
        run_id=node.run_id,
        rdzv_backend="c10d",
        rdzv_endpoint=node.rendezvous,
        rdzv_configs={"is_host": node.index == 0, "join_timeout": JOIN_TIMEOUT_S},
        max_restarts=IN_PLACE_RESTARTS,
        monitor_interval=0.1,
        local_addr=node.address,
        logs_specs=DefaultLogsSpecs(),
    )


def main() -> None:
    die_with_parent()
    forbid_core_dumps()
    paths = Paths.from_env()
    try:
        _run_ranks(paths)
    except Exception as error:
        Failure.of(error).save(paths.scratch / "failure.json")
        raise


def _run_ranks(paths: Paths) -> None:
    launch = elastic_launch(launch_config(load_config(paths.config), Node.from_env()), sys.executable)
    try:
        launch("-m", "deepseek_trainer.train")
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        told = Failure.load(paths.scratch / "failure.json")
        failure = told if told and told.rank == rank else Failure.of_exit(first.exitcode, rank)
        failure.save(paths.scratch / "failure.json")
        sys.exit(ExitCode.TRY_AGAIN)


if __name__ == "__main__":
    run(main)
