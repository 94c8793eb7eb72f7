"""What somebody could try who may write training jobs but should gain nothing by it; tests/e2e tries it."""

from typing import Any

from support.cluster.kube import Manifest

ENVIRONMENT = "trainer.env"
VOLUMES = "trainer.volumes"


def variable(name: str, value: str) -> tuple[str, Any]:
    return ENVIRONMENT, [{"name": name, "value": value}]


def mounted(**source: Any) -> tuple[str, Any]:
    return VOLUMES, [{"name": "theirs", **source}]


# Attack, field and value; none of these fields exists.
UNSAYABLE: dict[str, tuple[str, Any]] = {
    "another service account": ("trainer.serviceAccountName", "cluster-admin"),
    "a token of the API server": ("trainer.automountServiceAccountToken", True),
    "pull secrets of another team": ("trainer.imagePullSecrets", [{"name": "team-b"}]),
    "a pod template": ("trainer.template", {"spec": {"hostNetwork": True}}),
    "a patch of the pod": ("trainer.podSpecOverrides", [{"spec": {"nodeName": "control"}}]),
    "a directory of the machine": ("data.train.hostPath", "/etc/kubernetes"),
    "a volume of another team by its name": ("checkpoint.volume.volumeName", "pv-team-b"),
    "a path out of the volume": ("checkpoint.volume.subPath", "../"),
    "a claim of another namespace": ("data.train.namespace", "team-b"),
    "a key of another namespace": ("checkpoint.encryption.keyRef.namespace", "team-b"),
    "a profile of another namespace": ("trainer.profileNamespace", "team-b"),
    "a projected secret": mounted(projected={"sources": [{"secret": {"name": "theirs"}}]}),
    "an inline CSI volume": mounted(csi={"driver": "secrets-store.csi.k8s.io"}),
    "an ephemeral volume of a foreign class": mounted(ephemeral={"volumeClaimTemplate": {}}),
    "all entries of a secret as environment": ("trainer.envFrom", [{"secretRef": {"name": "theirs"}}]),
    "one entry of a secret as environment": (ENVIRONMENT, [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]),
    "more GPUs than asked for": variable("NVIDIA_VISIBLE_DEVICES", "all"),
    "a library preloaded": variable("LD_PRELOAD", "/claims/corpus/evil.so"),
    "modules from a claim": variable("PYTHONPATH", "/claims/corpus"),
    "a script at Python's start": variable("PYTHONSTARTUP", "/claims/corpus/evil.py"),
    "another cluster's credentials": variable("KUBECONFIG", "/claims/corpus/config"),
    "code that comes with a model": ("model.architecture.trustRemoteCode", True),
    "another command": ("trainer.command", ["sh", "-c", "id"]),
    "arguments": ("trainer.args", ["$(id)"]),
    "privileged": ("trainer.securityContext", {"privileged": True}),
    "capabilities": ("trainer.securityContext", {"capabilities": {"add": ["SYS_ADMIN"]}}),
    "no seccomp": ("trainer.securityContext", {"seccompProfile": {"type": "Unconfined"}}),
    "root": ("trainer.runAsUser", 0),
    "the machine's network": ("trainer.hostNetwork", True),
    "the machine's processes": ("trainer.hostPID", True),
    "the machine's shared memory": ("trainer.hostIPC", True),
    "the machine's users": ("trainer.hostUsers", True),
    "processes of the other containers": ("trainer.shareProcessNamespace", True),
    "another runtime": ("trainer.runtimeClassName", "runc-unconfined"),
    "a machine by its name": ("trainer.nodeName", "control"),
    "machines of the control plane": ("trainer.tolerations", [{"operator": "Exists"}]),
}
# Attack, what is said, words of the refusal.
REFUSED: dict[str, tuple[Manifest, str]] = {
    "a path out of the claim": ({"data": {"train": {"path": "../../keys/kek"}}}, "path must be relative"),
    "a claim of another namespace": ({"data": {"train": {"claimName": "team-b/corpus"}}}, "data.train.claimName"),
    "an image that may change": ({"trainer": {"image": "registry.local/trainer:v1"}}, "trainer.image"),
    "a look-alike registry": (
        {"trainer": {"image": "registry.l\u043ecal/trainer@sha256:" + "a" * 64}},
        "trainer.image",
    ),
    "the priority of the cluster's own pods": (
        {"scheduling": {"priorityClassName": "system-node-critical"}},
        "priorityClassName must not begin with system-",
    ),
    "the machine's credentials from the cloud": (
        {"network": {"egress": [{"cidr": "169.254.169.254/32", "ports": [80]}]}},
        "cidr must not be the whole internet",
    ),
    "the machine's credentials by an IPv4-mapped address": (
        {"network": {"egress": [{"cidr": "::ffff:169.254.169.254/128", "ports": [80]}]}},
        "cidr must be an IPv4 or IPv6 network",
    ),
    "the machine's credentials by NAT64": (
        {"network": {"egress": [{"cidr": "64:ff9b::a9fe:a9fe/128", "ports": [80]}]}},
        "cidr must not be the whole internet",
    ),
    "the machine's credentials by 6to4": (
        {"network": {"egress": [{"cidr": "2002:a9fe:a9fe::/48", "ports": [80]}]}},
        "cidr must not be the whole internet",
    ),
    "the machine's credentials by IPv6": (
        {"network": {"egress": [{"cidr": "FD00:EC2:0::254/128", "ports": [80]}]}},
        "cidr must not be the whole internet",
    ),
    "link-local addresses spelt otherwise": (
        {"network": {"egress": [{"cidr": "febf::/16", "ports": [80]}]}},
        "cidr must not be the whole internet",
    ),
    "the whole internet": ({"network": {"egress": [{"cidr": "0.0.0.0/0", "ports": [443]}]}}, "cidr must not be"),
    "a million nodes": ({"trainer": {"numNodes": 10**6}}, "less than or equal to 1000"),
    "a spec of a mebibyte": ({"data": {"train": {"path": "a" * 2**20}}}, "may not be more than 1024"),
    "a claim's name that is too long": ({"data": {"train": {"claimName": "a" * 254}}}, "may not be more than 253"),
    "deletion in the past": ({"runPolicy": {"ttlSecondsAfterFinished": -1}}, "greater than or equal to 0"),
    "an endless quantity": ({"trainer": {"resourcesPerNode": {"limits": {"cpu": "9e999"}}}}, "limits.cpu"),
}
METADATA: dict[str, tuple[Manifest, str]] = {
    "a name that breaks host names": ({"name": "a" * 64}, "metadata.name becomes part of host names"),
    "a name that no object may have": ({"name": "a" * 254}, "metadata.name"),
    "a line break in a label": ({"labels": {"kueue.x-k8s.io/queue-name": "a\nb"}}, "metadata.labels"),
    "an annotation of 262,145 bytes": ({"annotations": {"a": "a" * 262144}}, "metadata.annotations: Too long"),
}
# What a shell, the kubelet or a template engine would make something of.
TEXTS = ("$(rm -rf /)", "`id`; reboot", "$(DSTJ_RUN_ID)", "{{ .Values }}", "a'; --\n\"}")
# What other operators take orders from, some of it broken, and as much as the API server lets in.
ANNOTATIONS = {
    "kopf.zalando.org/last-handled-configuration": "{not json",
    "training.dstj.io/impersonate": "system:admin",
    "kubernetes.io/service-account.name": "cluster-admin",
    "container.apparmor.security.beta.kubernetes.io/trainer": "unconfined",
    "scheduler.alpha.kubernetes.io/tolerations": '[{"operator": "Exists"}]',
    "batch.kubernetes.io/job-completion-index": "-1",
}
LARGEST = 262_144  # of all annotations of an object, names and contents [bytes]; one more is in METADATA
_room = LARGEST - sum(len(name) + len(content) for name, content in ANNOTATIONS.items())
ANNOTATIONS["filler"] = "a" * (_room - len("filler"))
