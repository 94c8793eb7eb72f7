"""Runs one worker Job on this machine: does the job controller's part, over local pods."""

import asyncio
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from deepseek_operator.concurrency import contained
from deepseek_trainer.contract import names
from deepseek_trainer.contract.progress import Progress
from deepseek_trainer.contract.times import rfc3339
from dstj.local.claims import Sources
from dstj.local.home import JobHome
from dstj.local.kubelet import Manifest, index_of, job_status, pod_of
from dstj.local.machine import cores, free_ports, gpus
from dstj.local.pod import LocalPod
from dstj.local.volumes import mount_all


@dataclass(frozen=True, slots=True)
class Ports:
    """The port on which the nodes of one attempt meet, and that on which node i serves its metrics."""

    rendezvous: int
    metrics: tuple[int, ...]

    @classmethod
    def free(cls, nodes: int) -> "Ports":
        rendezvous, *metrics = free_ports(nodes + 1)
        return cls(rendezvous, tuple(metrics))


@dataclass(frozen=True, slots=True)
class Machine:
    """How the pods of a job share this machine."""

    home: JobHome
    sources: Sources
    procs_per_node: int

    def variables(self, pod: Manifest, nodes: int, ports: Ports, *, is_init: bool) -> dict[str, str]:
        """The variables that differ from those of a pod in a cluster."""
        index, scratch = index_of(pod), str(self.home.scratch(pod["metadata"]["name"]))
        # While node 0 prepares the data, the other nodes wait: it may use all cores.
        threads = cores() if is_init else max(1, cores() // (nodes * self.procs_per_node))
        return {
            names.ENV_ROOT: str(self.home.directory),
            names.ENV_SCRATCH: scratch,
            names.ENV_RENDEZVOUS: f"127.0.0.1:{ports.rendezvous}",
            names.ENV_NODE_ADDRESS: loopback(index),
            names.ENV_METRICS_PORT: str(ports.metrics[index]),
            "GLOO_SOCKET_IFNAME": "lo",
            "TP_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": ",".join(self._gpus(index, nodes)),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": scratch,
        }

    def _gpus(self, index: int, nodes: int) -> list[str]:
        """The GPUs of a node, one for each rank; none at all if there are not enough."""
        here = list(gpus())
        if len(here) < nodes * self.procs_per_node:
            return []
        return here[index * self.procs_per_node : (index + 1) * self.procs_per_node]


def loopback(index: int) -> str:
    """The address of node `index`.  All of 127.0.0.0/8 is this machine."""
    return f"127.0.{(index + 1) // 256}.{(index + 1) % 256}"


PREPARING: Final = "preparing"  # the stage of a trainer before its first evaluation or step
NOTHING_TO_SAVE_S: Final = 5.0  # that a pod gets to leave then


class LocalJob:
    """A Job object and its pods.  `manifest` always has the current state.  It starts at once."""

    has_trained = False  # whether its trainer has come so far that there is something to save

    def __init__(self, manifest: Manifest, machine: Machine, changed: Callable[[], None]) -> None:
        now = datetime.now(UTC)
        self.manifest = deepcopy(manifest)
        self.manifest["metadata"] |= {"uid": str(uuid4()), "creationTimestamp": rfc3339(now)}
        self._machine, self._notify = machine, changed
        nodes = self.manifest["spec"]["completions"]
        self.ports = Ports.free(nodes)
        self._pods = [self._pod(pod_of(self.manifest, i, now)) for i in range(nodes)]
        for pod in self._pods:
            mount_all(pod.manifest, machine.home.directory, machine.sources)
        self._changed()
        self._task = asyncio.create_task(self._run(), name=f"worker job {self.name}")

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def pods(self) -> tuple[Manifest, ...]:
        return tuple(pod.manifest for pod in self._pods)

    def heard(self, progress: Progress | None) -> None:
        """Remember it if the trainer says that it has come past its preparation."""
        if progress is not None and progress.stage not in (None, PREPARING):
            self.has_trained = True

    @property
    def grace_s(self) -> float:
        """How long its pods may take to leave: the template's grace period is for writing a checkpoint."""
        template = self.manifest["spec"]["template"]["spec"]
        whole = float(template.get("terminationGracePeriodSeconds", 30))
        return whole if self.has_trained else min(whole, NOTHING_TO_SAVE_S)

    def stop(self, grace_s: float | None = None) -> None:
        """Stop every pod.  After `grace_s`, by default its own grace period, they are killed."""
        grace = self.grace_s if grace_s is None else grace_s
        for pod in self._pods:
            if pod.phase in ("Pending", "Running"):
                pod.stop(grace)

    @property
    def is_done(self) -> bool:
        """Whether no process of the job is left."""
        if self._task.done():
            self._task.exception()  # so that asyncio does not warn of an exception that was never retrieved
        return self._task.done()

    @property
    def has_ended(self) -> bool:
        """Like is_done, but raises what kept a pod from running, a full disk for example."""
        return self._task.done() and self._task.result() is None

    def _pod(self, manifest: Manifest) -> LocalPod:
        nodes, home = self.manifest["spec"]["completions"], self._machine.home
        return LocalPod(
            manifest,
            variables=lambda pod, is_init: self._machine.variables(pod, nodes, self.ports, is_init=is_init),
            scratch=home.scratch(manifest["metadata"]["name"]),
            logs=home.logs / manifest["metadata"]["name"],
            changed=self._changed,
        )

    async def _run(self) -> None:
        """Run all pods.  The first failure stops the others.  Pods that were stopped vanish once they have ended."""
        running = {asyncio.create_task(contained(pod.run())): pod for pod in self._pods}
        problems = []
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                pod = running.pop(task)
                if error := task.exception():  # a full disk, for example: no pod status could express it
                    problems.append(error)
                if pod.is_leaving:
                    self._pods.remove(pod)
                elif error or pod.phase == "Failed":
                    self.stop()
            self._changed()
        if problems:
            raise problems[0]

    def _changed(self) -> None:
        self.manifest["status"] = job_status(self.manifest, self.pods, datetime.now(UTC))
        self._notify()
