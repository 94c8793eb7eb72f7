"""The desired state: the objects that run one training job.

Every function here is pure.  An object holds only the fields that the operator decides; server-side apply leaves the
others to the cluster.

Names begin with `dstj-`, and those of worker jobs end in `-a<attempt>`.  So a training job that has the name of
somebody's Service or NetworkPolicy does not need the name for its own.
"""

from deepseek_operator.api.isolation import Isolation
from deepseek_operator.api.names import API_VERSION, KIND
from deepseek_operator.jobs import labels
from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.network import network_policy
from deepseek_operator.jobs.spec import VolumeRetention
from deepseek_operator.jobs.worker_job import worker_job
from deepseek_operator.objects.observed import Manifest, Owner
from deepseek_trainer.contract.names import METRICS_PORT


def children(blueprint: Blueprint) -> tuple[Manifest, ...]:
    """All objects that the attempt needs, in the order in which they are applied.  The worker job is last."""
    spec, owner = blueprint.spec, blueprint.owner
    meta = _metadata(owner, blueprint.child_name)
    made = [_service_account(meta)]
    if spec.network.isolation is Isolation.ISOLATED:
        made.append(network_policy(blueprint, meta))
    made.append(_service(blueprint, meta))
    # Once a pod has started, the claim is not made again.  If it vanishes then, checkpoints are lost with it, and a
    # person must see that.
    if blueprint.makes_claim and spec.checkpoint.volume.claim_name is None:
        made.append(_claim(blueprint, meta))
    job_meta = _metadata(owner, blueprint.worker_job_name)
    job_meta["labels"] |= {labels.ATTEMPT: str(blueprint.attempt)} | labels.of_queue(blueprint.job_labels)
    return (*made, worker_job(blueprint, job_meta))


def _metadata(owner: Owner, name: str) -> Manifest:
    reference = {"apiVersion": API_VERSION, "kind": KIND, "name": owner.name, "uid": owner.uid, "controller": True}
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels.of_job(owner),
        "ownerReferences": [reference],
    }


def _service_account(meta: Manifest) -> Manifest:
    """An identity without rights and without a token."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, "automountServiceAccountToken": False}


def _service(blueprint: Blueprint, meta: Manifest) -> Manifest:
    """The headless Service that gives each pod a stable name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "clusterIP": "None",
            "selector": {labels.JOB_UID: blueprint.owner.uid},
            # The nodes look each other up before any of them is ready.
            "publishNotReadyAddresses": True,
            "ports": [{"name": "metrics", "port": METRICS_PORT, "protocol": "TCP"}],
        },
    }


def _claim(blueprint: Blueprint, meta: Manifest) -> Manifest:
    """The claim of the work volume.  Without an owner it outlives the job, and a job of the same name uses it again."""
    volume, nodes = blueprint.spec.checkpoint.volume, blueprint.spec.trainer.num_nodes
    if volume.when_deleted is VolumeRetention.RETAIN:
        meta = {key: value for key, value in meta.items() if key != "ownerReferences"}
    claim: Manifest = {
        "accessModes": [str(volume.mode(nodes))],
        "resources": {"requests": {"storage": str(volume.size)}},
    }
    if blueprint.storage_class:
        claim["storageClassName"] = blueprint.storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim}
