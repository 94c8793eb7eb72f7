"""What kopf alone costs: an operator without features, whose create handler makes one Indexed Job.

python floor.py PORT: serve every namespace of the kubeconfig's cluster, /healthz on PORT.
"""

import asyncio
import sys
from typing import Any

import kopf
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient

from deepseek_operator.controller.client import Api, path

POD = {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "registry.example.com/trainer"}]}


@kopf.on.startup()
async def connect(memo: kopf.Memo, settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.posting.enabled = False
    settings.peering.standalone = True
    await config.load_kube_config()
    memo.api = Api(ApiClient())


@kopf.on.create("training.dstj.io", "v1alpha1", "deepseektrainingjobs")
async def make_worker_job(body: kopf.Body, namespace: str, name: str, memo: kopf.Memo, **_: Any) -> None:
    nodes = body.spec["trainer"]["numNodes"]
    spec = {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes, "template": {"spec": POD}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"{name}-a1"}, "spec": spec}
    kopf.adopt(job, owner=body)
    await memo.api.request("POST", path("batch/v1", "Job", namespace), body=job)


if __name__ == "__main__":
    asyncio.run(kopf.operator(clusterwide=True, liveness_endpoint=f"http://127.0.0.1:{sys.argv[1]}/healthz"))
