"""Others' operators for the benchmark: Kubeflow Trainer v2 on JobSet, and training-operator.

Their modules are fetched, built and started at run time (peer_programs.py); nothing of theirs is kept here.  Each runs
as its own manifests say: its arguments, its configuration, its role, its webhooks, one replica.  The rows below hold
what is different because it runs as a process on loopback, and what raises its limits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]
Job = Callable[[int], Manifest]  # of so many nodes
IsRight = Callable[[Manifest, int], bool]  # a status, of a job of so many nodes
IMAGE = "registry.example.com/trainer"
QPS, BURST, WORKERS = 500, 1000, 20  # raised limits, those of the controller manager


@dataclass(frozen=True)
class Component:
    """One program of a peer, from its source to its command line."""

    name: str
    module: str
    version: str
    package: str
    kustomizations: Sequence[str]  # of its archive, in the order in which they are applied
    account: str  # user name of its service account
    settings: Mapping[str, Any] = field(default_factory=dict)  # over its configuration file, where it has one
    raised_settings: Mapping[str, Any] = field(default_factory=dict)
    flags: Sequence[str] = ()  # {webhook} and {health} are ports
    raised_flags: Sequence[str] = ()
    edits: Sequence[tuple[str, str, str]] = ()  # file, text, what stands in its place
    files: Mapping[str, str] = field(default_factory=dict)  # added to the source


@dataclass(frozen=True)
class Contestant:
    """Who takes part: what a benchmark has to know of an operator."""

    name: str
    users: Sequence[str]  # as whom it writes
    plural: str  # of the kind of its jobs
    job: Job
    is_right: Mapping[str, IsRight]  # of a job's status, by what it is to tell of; left out where none ever does
    components: Sequence[Component] = ()  # of somebody else's operator

    @property
    def path(self) -> str:
        """Of all its jobs at the API server."""
        return f"/apis/{self.job(1)['apiVersion']}/{self.plural}"


JOBSET = Component(
    "jobset",
    "sigs.k8s.io/jobset",
    "v0.12.0",
    ".",
    ("config/default",),
    "system:serviceaccount:jobset-system:jobset-controller-manager",
    settings={"internalCertManagement": {"enable": False}},
    raised_settings={"clientConnection": {"qps": QPS, "burst": BURST}},
)
TRAINER = Component(
    "trainer",
    "github.com/kubeflow/trainer/v2",
    "v2.3.0",
    "./cmd/trainer-controller-manager",
    ("manifests/overlays/manager", "manifests/overlays/runtimes"),
    "system:serviceaccount:kubeflow-system:kubeflow-trainer-controller-manager",
    settings={"certManagement": {"enable": False}},
    # One worker, as JobSet: its controller names no kind, so that its setting for workers changes nothing.
    raised_settings={"clientConnection": {"qps": QPS, "burst": BURST}},
    # JobSet comes from its own archive: this line would fetch it from the web.
    edits=(("manifests/overlays/manager/kustomization.yaml", "  - ../../third-party/jobset", ""),),
)
# No flag of its raises the 20 requests a second that it has, so a file of ours adds one.
TRAINING_OPERATOR = Component(
    "training-operator",
    "github.com/kubeflow/training-operator",
    "v1.9.0",
    "./cmd/training-operator.v1",
    ("manifests/overlays/standalone",),
    "system:serviceaccount:kubeflow:training-operator",
    flags=(
        "--webhook-server-port={webhook}",
        "--health-probe-bind-address=127.0.0.1:{health}",
        "--metrics-bind-address=0",
    ),
    raised_flags=(f"--kube-api-qps={QPS}", f"--kube-api-burst={BURST}", f"--controller-threads={WORKERS}"),
    edits=(
        ("cmd/training-operator.v1/main.go", "ctrl.GetConfigOrDie()", "limited()"),
        ("pkg/cert/cert.go", '"/tmp/k8s-webhook-server', '"k8s-webhook-server'),  # its working directory is ours
    ),
    files={
        "cmd/training-operator.v1/limits.go": """package main

import (
	"flag"

	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
)

var (
	qps   = flag.Float64("kube-api-qps", 20, "requests a second")
	burst = flag.Int("kube-api-burst", 30, "requests at once")
)

func limited() *rest.Config {
	config := ctrl.GetConfigOrDie()
	config.QPS, config.Burst = float32(*qps), *burst
	return config
}
"""
    },
)


def train_job(nodes: int) -> Manifest:
    spec = {"runtimeRef": {"name": "torch-distributed"}, "trainer": {"image": IMAGE, "numNodes": nodes}}
    return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "spec": spec}


def train_job_says(word: str) -> IsRight:
    """`ready`: all pods of its one Job are; `active`: one of them was made at least, for a JobSet counts Jobs."""

    def is_right(status: Manifest, _: int) -> bool:
        return any(part["name"] == "node" and part.get(word) for part in status.get("jobsStatus", ()))

    return is_right


def pytorch_job(nodes: int) -> Manifest:
    template = {"spec": {"containers": [{"name": "pytorch", "image": IMAGE}]}}
    counts = {"Master": 1, "Worker": nodes - 1}
    replicas = {role: {"replicas": count, "template": template} for role, count in counts.items() if count}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {"pytorchReplicaSpecs": replicas}}


def pytorch_job_runs(status: Manifest, nodes: int) -> bool:
    """Of pods that do not run yet, its status does not tell."""
    return sum(role.get("active", 0) for role in status.get("replicaStatuses", {}).values()) == nodes


def peer(name: str, plural: str, job: Job, is_right: Mapping[str, IsRight], *components: Component) -> Contestant:
    return Contestant(name, [component.account for component in components], plural, job, is_right, components)


PEERS = (
    peer(
        "trainer",
        "trainjobs",
        train_job,
        {"pods": train_job_says("active"), "running": train_job_says("ready")},
        JOBSET,
        TRAINER,
    ),
    peer("training-operator", "pytorchjobs", pytorch_job, {"running": pytorch_job_runs}, TRAINING_OPERATOR),
)
