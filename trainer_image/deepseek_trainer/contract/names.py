"""Paths, environment variables, ports and exit codes that operator and trainer share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

# Environment of a worker.  A pod has the first block only: each variable of a container costs the API server 4 KB of
# garbage for each pod that it makes.  `dstj run` also sets the second block, because its workers share a machine.
ENV_RUN_ID: Final = "DSTJ_RUN_ID"  # "<job uid>-<attempt>": a closed rendezvous is never joined again
ENV_NODE_INDEX: Final = "JOB_COMPLETION_INDEX"  # 0 to numNodes - 1; set by kube-controller-manager
ENV_RENDEZVOUS: Final = "DSTJ_RENDEZVOUS"  # "host:port" of node 0
ENV_ACCELERATORS: Final = "DSTJ_ACCELERATORS"  # "8 nvidia.com/gpu": what the pod asked for; unset if nothing
ENV_FABRIC: Final = "DSTJ_FABRIC"  # "1" if the pod asked for RDMA

ENV_NODE_ADDRESS: Final = "DSTJ_NODE_ADDRESS"  # see node_address
ENV_METRICS_PORT: Final = "DSTJ_METRICS_PORT"  # see metrics_port
ENV_TERMINATION_LOG: Final = "DSTJ_TERMINATION_LOG"  # see termination_log
ENV_ROOT: Final = "DSTJ_ROOT"  # prefix of every path below; unset in a pod
ENV_SCRATCH: Final = "DSTJ_SCRATCH"  # where workers share DSTJ_ROOT: the worker's own scratch directory

LEAVE_S: Final = 30  # of a pod's grace period, for the launcher, after checkpoint.gracePeriodSeconds for the ranks

RENDEZVOUS_PORT: Final = 29400
METRICS_PORT: Final = 9400
TERMINATION_LOG: Final = Path("/dev/termination-log")  # the kubelet's default; exists in a pod only


def node_address(environ: Mapping[str, str] = os.environ) -> str:
    """The address under which the other nodes reach this one.

    In a pod it follows from node 0's: the names of an Indexed Job's pods differ in their index only.
    """
    if address := environ.get(ENV_NODE_ADDRESS):
        return address
    host, _, domain = host_and_port(environ[ENV_RENDEZVOUS])[0].partition(".")
    return f"{host.removesuffix('0')}{environ[ENV_NODE_INDEX]}.{domain}"


def host_and_port(endpoint: str) -> tuple[str, int]:
    """The parts of `host:port`, where an IPv6 address stands in brackets."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def metrics_port(environ: Mapping[str, str] = os.environ) -> int:
    """The port on which node 0 serves /metrics and /progress."""
    return int(environ.get(ENV_METRICS_PORT) or METRICS_PORT)


def termination_log(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file in which the launcher leaves its Failure as JSON; None where nobody reads it."""
    if path := environ.get(ENV_TERMINATION_LOG):
        return Path(path)
    return TERMINATION_LOG if TERMINATION_LOG.exists() else None


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a worker finds its volumes: absolute in a pod, below `root` on a laptop."""

    root: Path = Path("/")
    scratch: Path = Path("/tmp")  # noqa: S108  an emptyDir of the pod's own; dies with it

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Paths":
        root = Path(environ.get(ENV_ROOT) or "/")
        return cls(root, Path(environ.get(ENV_SCRATCH) or root / SCRATCH_MOUNT.lstrip("/")))

    def at(self, mount_path: str) -> Path:
        """Where an absolute `mount_path` of the worker template lies."""
        return self.root / mount_path.lstrip("/")

    @property
    def config(self) -> Path:
        return self.at(CONFIG_MOUNT) / CONFIG_FILE

    @property
    def work(self) -> Path:
        return self.at(WORK_MOUNT)

    @property
    def key_dir(self) -> Path:
        return self.at(KEY_MOUNT)

    @property
    def prepared(self) -> Path:
        return self.work / "prepared"

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @property
    def export(self) -> Path:
        return self.work / "export"

    @property
    def logs(self) -> Path:
        """The directory of rank 0's TensorBoard files and JSON-lines event file."""
        return self.work / "logs"

    def claim(self, claim_name: str, path: str = "") -> Path:
        """`path` inside the volume of a persistent volume claim."""
        return self.at(f"{CLAIMS_MOUNT}/{claim_name}") / path


CONFIG_MOUNT: Final = "/etc/dstj"  # an annotation of the pod, written by the operator
CONFIG_FILE: Final = "config.json"
WORK_MOUNT: Final = "/work"  # the job's own volume, shared by its workers
KEY_MOUNT: Final = "/run/dstj/keys"  # Secret: one file per key-encryption key, 32 bytes each; or, for a key server:
ACCOUNT_TOKEN: Final = "jwt"  # noqa: S105  the pod's ServiceAccount token, with which it logs in
SERVER_TOKEN: Final = "token"  # noqa: S105  a token of the server itself, which needs no login
SERVER_CA: Final = "ca.crt"  # PEM
SERVER_REF: Final = "vault-transit.json"  # on a machine without a cluster: which server, as keyRef.vaultTransit says it
SCRATCH_MOUNT: Final = "/tmp"  # noqa: S108
CLAIMS_MOUNT: Final = "/volumes"  # /volumes/<claimName>, read-only


class ExitCode(IntEnum):
    """How a trainer process or a `dstj` command ends; the worker Job's failure policy is built from these."""

    DONE = 0
    INTERNAL = 1  # a bug or an unforeseen failure: tried again
    USAGE = 2  # `dstj` only: wrong arguments
    CONFIG = 64  # the job file, model or key reference is wrong: a retry cannot help
    DATA = 65  # the data are missing, empty or malformed: a retry cannot help
    NOT_FINITE = 70  # the training came to nothing: NaN, or no lower loss where one is required; no retry can help
    TRY_AGAIN = 75  # a peer, the storage or the memory went away: resume from the last checkpoint
    INTEGRITY = 77  # a key is missing, wrong or open to others, or sealed bytes do not authenticate: never trained on
    STOPPED = 143  # asked to stop (SIGTERM); where ranks were training, after a checkpoint


NOT_RETRYABLE: Final = frozenset({ExitCode.CONFIG, ExitCode.DATA, ExitCode.NOT_FINITE, ExitCode.INTEGRITY})
