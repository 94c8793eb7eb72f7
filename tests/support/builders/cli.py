"""Smallest valid job files, and stand-in workers in place of the trainer's commands."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from deepseek_operator.api.names import API_VERSION, KIND
from dstj.local.cluster import LocalCluster
from dstj.local.home import Home, JobHome
from dstj.local.kubelet import Manifest

ARCHITECTURE = {"hiddenSize": 8, "numLayers": 1, "numHeads": 1, "intermediateSize": 8, "vocabSize": 260}
WORKER = "DSTJ_TEST_WORKER"  # the Python program that stands in for the trainer


def a_spec(**changes: Any) -> dict[str, Any]:
    """A small valid spec; tests name only the fields that they are about, `a__b` for a nested one."""
    spec: dict[str, Any] = {
        "trainer": {"profile": "cpu", "numNodes": 1, "numProcPerNode": 1},
        "model": {"architecture": dict(ARCHITECTURE)},
        "data": {"train": {"claimName": "corpus"}},
        "optimization": {"globalBatchSize": 4},
        "checkpoint": {"gracePeriodSeconds": 10},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = spec
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return deepcopy(spec)


def a_job(name: str = "tiny", **changes: Any) -> Manifest:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": a_spec(**changes)}


def job_file(directory: Path, name: str = "tiny", **changes: Any) -> Path:
    """The file of `a_job`, with a directory for its claim beside it."""
    (directory / "corpus").mkdir(exist_ok=True)
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(a_job(name, **changes)))
    return path


def job_home(name: str = "tiny") -> JobHome:
    return Home.from_env().job(name)


def job_status(name: str = "tiny") -> Manifest:
    status: Manifest = yaml.safe_load(job_home(name).status_file.read_text())["status"]
    return status


class StandIns(LocalCluster):
    """A local cluster whose workers run a small program instead of the trainer."""

    async def apply(self, manifest: Manifest) -> None:
        if manifest["kind"] == "Job":
            manifest = with_commands(manifest, trainer=os.environ[WORKER])
        await super().apply(manifest)


def with_commands(job: Manifest, **programs: str) -> Manifest:
    """`job` with a Python program for each container named; the others do nothing."""
    job = deepcopy(job)
    pod = job["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        # -S -E: no site-packages, so that a stand-in starts in 15 ms.
        container["command"] = ["python", "-S", "-E", "-c", programs.get(container["name"], "")]
    return job
