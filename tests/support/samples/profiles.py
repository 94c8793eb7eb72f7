"""Samples for every rule of TrainingProfiles: changes to the smallest one that hold it, and ones that break it alone.

tests/operator asks the models and the generated schema, tests/e2e the real API server.
"""

from typing import Any

from support.builders.operator import IMAGE


def requires(operator: str, *values: str) -> dict[str, Any]:
    """A profile that asks for machines with a label."""
    requirement = {"key": "gpu.vendor/kind", "operator": operator} | ({"values": list(values)} if values else {})
    terms = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


def setting(name: str, value: str = "1") -> dict[str, Any]:
    return {"env": [{"name": name, "value": value}]}


def accelerator(name: str, count: int = 1) -> dict[str, Any]:
    return {"accelerator": {"resourceName": name, "count": count}}


def device(name: str) -> dict[str, Any]:
    return {"resourcesPerNode": {"limits": {name: 1}}}


def pulling(*names: str) -> dict[str, Any]:
    return {"imagePullSecrets": [{"name": name} for name in names]}


def spreading(*keys: str) -> dict[str, Any]:
    return {"topologySpread": [{"topologyKey": key} for key in keys]}


PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
TERM = {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}


def label(key: str) -> dict[str, Any]:
    return {"podMetadata": {"labels": {key: "x"}}}


# How the message begins, what holds the rule, what breaks it.
RULES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *(
        ("name must begin with", setting(good), setting(bad))
        for good, bad in (
            ("NCCL_IB_HCA", "LD_PRELOAD"), ("PYTORCH_CUDA_ALLOC_CONF", "PYTHONPATH"), ("GLOO_SOCKET_IFNAME", "GLOO_"),
            ("FI_PROVIDER", "XFI_PROVIDER"), ("UCX_TLS", "ucx_tls"), ("TORCH_LOGS", "TORCHELASTIC_RUN_ID"),
        )
    ),
    *(
        ("name must be none of", setting("TORCH_LOGS"), setting(name))
        for name in (
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "UCX_GDB_COMMAND",
            "FI_PROVIDER_PATH", "TORCH_EXTENSIONS_DIR", "PYTORCH_KERNEL_CACHE_PATH", "TORCH_HOME",
        )
    ),
    ("operator In and NotIn", requires("In", "h100", "h200"), requires("In")),
    ("operator In and NotIn", requires("Gt", "4"), requires("Lt", "4", "5")),
    ("operator In and NotIn", requires("NotIn", "t4"), requires("Gt", "many")),
    ("operator In and NotIn", requires("Exists"), requires("DoesNotExist", "t4")),
    *(
        ("resourceName must be", accelerator(good), accelerator(bad))
        for good, bad in (
            ("nvidia.com/mig-1g.5gb", "huawei.com/Ascend910"), ("amd.com/gpu", "gpu.intel.com/i915"),
            ("nvidia.com/gpu.shared", "nvidia.com/gpux"),
        )
    ),
    (
        "accelerator adds its devices",
        accelerator("amd.com/gpu") | {"resourcesPerNode": {"limits": {"cpu": 4}}},
        accelerator("amd.com/gpu") | {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 1}}},
    ),
    ("each of env needs", setting("NCCL_DEBUG"), {"env": setting("NCCL_DEBUG")["env"] * 2}),
    ("must be NAME@sha256:", {"image": IMAGE}, {"image": "trainer:latest"}),
    ("each of imagePullSecrets", pulling("a", "b"), pulling("a", "a")),
    ("each of topologySpread", spreading("rack", "zone"), spreading("rack", "rack")),
    ("limits and requests may", device("rdma/a"), device("google.com/tpu")),
    ("labels and annotations of", label("team"), label("controller-uid")),
]  # fmt: skip
# What the schema of a profile itself limits: inside, outside.
BOUNDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (setting("NCCL_SOCKET_IFNAME", "=eth0,eth1"), setting("NCCL_NET_PLUGIN", "/work/libevil.so")),
    (setting("NCCL_DEBUG", "WARN"), setting("NCCL_DEBUG", "a" * 257)),
    (accelerator("nvidia.com/gpu", 64), accelerator("nvidia.com/gpu", 65)),
    ({"security": {"userFrom": "Namespace"}}, {"security": {"userFrom": "Root"}}),
    (pulling("registry"), pulling("Registry")),
    ({"runtimeClassName": "nvidia"}, {"runtimeClassName": "nvidia/cdi"}),
    ({"schedulerName": "packer"}, {"schedulerName": "a packer"}),
    ({"nodeSelector": {"pool": "gpu"}}, {"nodeSelector": {"pool": "g p u"}}),
    ({"tolerations": [{"operator": "Exists"}]}, {"tolerations": [{"operator": "Is"}]}),
    ({"storageClassName": "fast"}, {"storageClassName": "Fast"}),
    ({"egress": [{"cidr": "10.0.0.0/8", "ports": [1]}]}, {"egress": [{"cidr": "10.0.0.0/8", "ports": [0]}]}),
    (
        {"affinity": {"nodeAffinity": {}}},
        {"affinity": {"nodeAffinity": {PREFERRED: [{"weight": 0, "preference": TERM}]}}},
    ),
    ({"limits": {"maxResourcesPerNode": {"cpu": 4}}}, {"limits": {"maxResourcesPerNode": {"cpu": "four"}}}),
    ({"limits": {"priorityClassNames": []}}, {"limits": {"priorityClassNames": ["High"]}}),
    ({"limits": {"storageClassNames": ["fast"]}}, {"limits": {"storageClassNames": ["Fast"]}}),
    (spreading("rack"), {"topologySpread": [{"topologyKey": "rack", "maxSkew": 0}]}),
    (label("team"), {"podMetadata": {"labels": {"team": "-"}}}),
    ({"podMetadata": {"annotations": {"note": "a/b: c"}}}, {"podMetadata": {"annotations": {"note": "a\nb"}}}),
    ({"podMetadataPrefixes": ["sidecar.istio.io/"]}, {"podMetadataPrefixes": ["sidecar"]}),
    (
        {"topologySpread": [{"topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]},
        {"topologySpread": [{"topologyKey": "rack", "whenUnsatisfiable": "Never"}]},
    ),
    ({"limits": {"maxNodes": 1000}}, {"limits": {"maxNodes": 0}}),
    ({"limits": {"maxVolumeSize": "1Ti"}}, {"limits": {"maxVolumeSize": "much"}}),
]
