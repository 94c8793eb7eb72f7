"""This node's torchrun agent: it starts the local ranks, restarts them together, and reports which failed first.

The agents of all nodes meet by c10d rendezvous on node 0.  Node addresses order the ranks, so that rank 0 is always on
node 0, where /metrics and /progress are served.
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import LogsDest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from deepseek_trainer.budget.ladder import ladder
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ADAPTING, PEER_GONE, PeerGoneError
from deepseek_trainer.contract.lines import guard_logs
from deepseek_trainer.contract.names import ENV_NODE_INDEX, ENV_RENDEZVOUS, ENV_RUN_ID, ExitCode, Paths, node_address
from deepseek_trainer.worker.failure import Failure, run
from deepseek_trainer.worker.heartbeat import Heartbeat
from deepseek_trainer.worker.meeting import Meeting
from deepseek_trainer.worker.process import die_with_parent, forbid_core_dumps, ignore_profile
from deepseek_trainer.worker.scratch import Scratch
from deepseek_trainer.worker.training_config import load_config

IN_PLACE_RESTARTS = 3  # after failures in one pod; one more fails the pod, and the operator starts a new attempt
JOIN_TIMEOUT_S = 900  # once all nodes were there; until then there is no limit
RANK = ("-m", "deepseek_trainer.train")


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
        return cls(int(env[ENV_NODE_INDEX]), node_address(env), env[ENV_RENDEZVOUS], env[ENV_RUN_ID])


class Rounds(DefaultLogsSpecs):
    """Calls `on_begin` before each round of ranks, the only hook that torchrun has there.  Logs stay as they are."""

    def __init__(self, *on_begin: Callable[[], None]) -> None:
        super().__init__()
        self._on_begin = on_begin

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        for act in self._on_begin:
            act()
        return super().reify(envs)


class Patience:
    """Counts the failures of this pod's ranks.  Climbing a rung is none; a lost peer is a failure of the peer's pod."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch, self._failures = scratch, 0

    def begin_round(self) -> None:
        """Begin a round, or end this process if the ranks have failed too often.

        torchrun would allow more restarts: it has one for every rung as well.
        """
        failure = Failure.load(self._scratch.failure)
        if failure is not None and failure.reason not in (ADAPTING, PEER_GONE):
            self._failures += 1
        if self._failures > IN_PLACE_RESTARTS:
            os._exit(ExitCode.TRY_AGAIN)  # without a farewell: the other nodes must miss this one's beat
        self._scratch.begin_round()


def launch_config(config: TrainingConfig, node: Node, rounds: Rounds) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=config.num_nodes,
        max_nodes=config.num_nodes,
        nproc_per_node=config.num_proc_per_node,
        run_id=node.run_id,
        rdzv_backend="c10d",
        rdzv_endpoint=node.rendezvous,
        rdzv_configs={"is_host": node.index == 0, "join_timeout": JOIN_TIMEOUT_S},
        max_restarts=IN_PLACE_RESTARTS + len([*ladder(config)]),
        monitor_interval=0.1,
        local_addr=node.address,
        logs_specs=rounds,
    )


def main() -> None:
    die_with_parent()
    forbid_core_dumps()
    ignore_profile()
    guard_logs()
    paths = Paths.from_env()
    scratch = Scratch(paths.scratch)
    try:
        _run_ranks(load_config(paths.config), Node.from_env(), scratch)
    except Exception as error:
        Failure.of(error).save(scratch.failure)
        raise


def _give_up(scratch: Scratch, reason: str) -> NoReturn:
    """End at once, from any thread.  The ranks, which wait for a peer that is gone, end with this process."""
    Failure.of(PeerGoneError(reason, hint="its machine or the network to it is gone")).save(scratch.failure)
    os._exit(ExitCode.TRY_AGAIN)


def _run_ranks(config: TrainingConfig, node: Node, scratch: Scratch) -> None:
    """Raises PeerGoneError where the nodes do not meet."""
    give_up = functools.partial(_give_up, scratch)
    meeting = Meeting(node.rendezvous, node.run_id, node.index, config.num_nodes)
    heartbeat = Heartbeat(node.rendezvous, node.run_id, node.index, config.num_nodes, give_up)
    try:
        meeting.wait()
        # When a round begins, the nodes have met: from then on, silence means that one is gone.
        rounds = Rounds(Patience(scratch).begin_round, heartbeat.start)
        elastic_launch(launch_config(config, node, rounds), sys.executable)(*RANK)
    except ChildFailedError as error:
        _speak_for_the_silent(error, scratch)
        sys.exit(ExitCode.TRY_AGAIN)
    except (RendezvousError, DistError) as error:
        raise PeerGoneError(
            f"the {config.num_nodes} nodes do not meet: {type(error).__name__} (they wait {JOIN_TIMEOUT_S} s)",
            hint="see the logs of the other nodes; all must reach node 0",
        ) from error
    finally:
        heartbeat.leave()


def _speak_for_the_silent(error: ChildFailedError, scratch: Scratch) -> None:
    """Save a failure for a rank that was killed and could not.  Its peers' failures do not name the cause."""
    rank, first = min(error.failures.items(), key=lambda item: (item[1].timestamp, item[1].exitcode >= 0))
    if first.exitcode < 0 or Failure.load(scratch.failure) is None:
        Failure.of_exit(first.exitcode, rank).save(scratch.failure)


if __name__ == "__main__":
    try:
        run(main)
    except SystemExit as ending:
        # A thread that still waits in the store's client would abort the process during the interpreter's teardown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ending.code or 0))
    os._exit(0)
