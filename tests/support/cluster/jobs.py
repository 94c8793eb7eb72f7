"""Training jobs for tests on the cluster."""

from typing import Any

from support.cluster import kube
from support.cluster.kube import Namespace, TrainingJob, example

STEPS = 40


def tiny(namespace: Namespace, name: str = "tiny", **changes: Any) -> TrainingJob:
    """A few dozen steps on two nodes, with a sealed checkpoint every eight."""
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    namespace.key("tiny-key")
    encryption = {"keyRef": {"secretName": "tiny-key"}}
    checkpoint = {"interval": {"steps": 8}, "encryption": encryption, "gracePeriodSeconds": 30}
    optimization = {"maxSteps": STEPS, "globalBatchSize": 4}
    evaluation = {"intervalSteps": STEPS, "maxRows": 8}
    changes = {"checkpoint": checkpoint, "optimization": optimization, "evaluation": evaluation, **changes}
    manifest = example("pretrain-tiny", **changes)
    manifest["metadata"]["name"] = name
    return TrainingJob(namespace, manifest)
