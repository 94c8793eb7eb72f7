"""children(): the exact objects as golden files, and the properties that a review would ask about."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from deepseek_operator.jobs import labels
from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.manifests import children
from deepseek_operator.objects.observed import Manifest
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.names import NOT_RETRYABLE, node_address
from support.builders.operator import OWNER, SETTINGS, a_profile, a_spec
from support.samples.api import CA, transit

LORA = {
    "trainer": {"image": None, "profile": "h100", "numNodes": 2, "numProcPerNode": 2},
    "model": {"architecture": None, "base": {"claimName": "models", "path": "base"}},
    "data": {
        "train": {"claimName": "corpus", "path": "train"},
        "validation": {"claimName": "corpus", "path": "held-out"},
    },
    "method": {"type": "LoRA"},
    "checkpoint": {
        "encryption": {"keyRef": {"secretName": "keys", "key": "kek-1"}},
        "volume": {"whenDeleted": "Delete"},
    },
    "network": {"egress": [{"cidr": "10.20.0.0/16", "ports": [443]}]},
    "scheduling": {"priorityClassName": "research"},
}
PROFILE = a_profile(
    resourcesPerNode={"limits": {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": 2}},
    nodeSelector={"pool": "gpu"},
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    storageClassName="fast",
    egress=[{"cidr": "10.30.0.0/16", "ports": [8080], "protocol": "TCP"}],
)
# Every field that a profile has.
FULL = a_profile(
    imagePullSecrets=[{"name": "registry"}],
    accelerator={"resourceName": "amd.com/gpu", "count": 2},
    resourcesPerNode={"limits": {"memory": "64Gi", "rdma/hca_shared_devices_a": 1, "hugepages-2Mi": "1Gi"}},
    runtimeClassName="amd",
    env=[{"name": "NCCL_IB_HCA", "value": "mlx5_0"}, {"name": "GLOO_SOCKET_IFNAME", "value": "eth1"}],
    podMetadata={"labels": {"team": "platform"}, "annotations": {"sidecar.istio.io/inject": "true", "note": "ours"}},
    podMetadataPrefixes=["sidecar.istio.io/"],
    security={"userFrom": "Namespace"},
    schedulerName="packer",
    nodeSelector={"pool": "gpu"},
    affinity={
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "rack", "operator": "NotIn", "values": ["r7"]}]}]
            },
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "preference": {"matchExpressions": [{"key": "memory", "operator": "Gt", "values": ["99"]}]},
                }
            ],
        }
    },
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    topologySpread=[{"topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
    storageClassName="fast",
    egress=[{"cidr": "10.30.0.0/16", "ports": [8080], "protocol": "TCP"}],
    limits={"maxNodes": 2, "maxVolumeSize": "1Ti"},
)
INJECTED = {
    "trainer": {
        "image": None,
        "profile": "full",
        "numProcPerNode": 2,
        "podMetadata": {"annotations": {"sidecar.istio.io/inject": "false"}},
    }
}
UNMANAGED = {"network": {"isolation": "Unmanaged"}, "checkpoint": {"volume": {"claimName": "mine"}}}
QUEUE = {labels.QUEUE: "team-a", labels.QUEUE_PRIORITY: "low", "team": "a"}


def rendered(
    spec: dict[str, Any], *, attempt: int = 1, makes_claim: bool = True, away_from: tuple[str, ...] = (), **queue: str
) -> tuple[Manifest, ...]:
    profile = {"h100": PROFILE, "full": FULL}.get(spec.get("trainer", {}).get("profile"))
    blueprint = Blueprint(
        a_spec(**spec), OWNER, profile, SETTINGS, attempt, queue, makes_claim=makes_claim, excluded_nodes=away_from
    )
    return children(blueprint)


def by_kind(spec: dict[str, Any], **arguments: Any) -> dict[str, Manifest]:
    return {manifest["kind"]: manifest for manifest in rendered(spec, **arguments)}


@pytest.mark.parametrize(
    ("name", "manifests"),
    [
        ("two_cpu_nodes", rendered({})),
        ("lora_on_gpus", rendered(LORA)),
        ("every_field_of_a_profile", rendered(INJECTED)),
        ("a_key_server", rendered(transit(caCertificate=CA, serverName="vault.example.org"))),
        ("third_attempt_in_a_queue", rendered(UNMANAGED, attempt=3, **QUEUE)),
    ],
)
def test_children_match_the_golden_file(
    golden: Callable[[str, str], None], name: str, manifests: tuple[Manifest, ...]
) -> None:
    golden(f"manifests/{name}.yaml", yaml.safe_dump_all(json.loads(json.dumps(manifests)), sort_keys=True, width=120))


def test_the_policy_is_applied_before_the_pods_and_the_worker_job_last() -> None:
    kinds = [manifest["kind"] for manifest in rendered({})]
    assert kinds == ["ServiceAccount", "NetworkPolicy", "Service", "PersistentVolumeClaim", "Job"]


def test_the_claim_is_made_until_training_has_begun_on_it() -> None:
    assert "PersistentVolumeClaim" in by_kind({}, attempt=2)
    assert "PersistentVolumeClaim" not in by_kind({}, makes_claim=False)


@pytest.mark.parametrize(("retention", "is_owned"), [("Retain", False), ("Delete", True)])
def test_the_claim_goes_with_the_job_only_when_asked(retention: str, is_owned: bool) -> None:
    claim = by_kind({"checkpoint": {"volume": {"whenDeleted": retention}}})["PersistentVolumeClaim"]
    assert ("ownerReferences" in claim["metadata"]) is is_owned


def test_no_child_can_take_over_an_object_named_like_the_job() -> None:
    names = {manifest["metadata"]["name"] for manifest in rendered({})}
    assert names == {"dstj-demo", "demo-a1"}


def test_selectors_hold_only_the_uid_of_the_job() -> None:
    objects = by_kind({}, **QUEUE)
    assert objects["Service"]["spec"]["selector"] == {labels.JOB_UID: OWNER.uid}
    assert objects["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": {labels.JOB_UID: OWNER.uid}}


def test_labels_of_the_training_job_are_not_passed_on_but_those_of_its_queue() -> None:
    given = by_kind({}, **QUEUE)["Job"]["metadata"]["labels"]
    assert given[labels.QUEUE] == "team-a"
    assert given[labels.QUEUE_PRIORITY] == "low"
    assert "team" not in given


def test_the_worker_job_leaves_suspend_to_its_queue() -> None:
    assert "suspend" not in by_kind({}, **QUEUE)["Job"]["spec"]


def test_the_config_that_pods_mount_is_what_the_trainer_parses() -> None:
    template = by_kind({})["Job"]["spec"]["template"]
    (volume,) = (volume for volume in template["spec"]["volumes"] if volume["name"] == "config")
    (item,) = volume["downwardAPI"]["items"]
    assert item == {"path": "config.json", "fieldRef": {"fieldPath": "metadata.annotations['training.dstj.io/config']"}}
    text = template["metadata"]["annotations"]["training.dstj.io/config"]
    assert TrainingConfig.model_validate_json(text) == a_spec().training_config("ml", "demo")


def test_the_longest_config_that_a_job_may_hold_fits_into_the_annotations_of_a_pod() -> None:
    """A kilobyte of each character that JSON writes longest, in every place that takes one."""
    path, label = "\x01" * 1024, "\x01" * 250
    sources = [{"name": f"s{i}", "claimName": "corpus", "path": path} for i in range(16)]
    data = {"train": None, "sources": sources, "validation": {"claimName": "corpus", "path": path}}
    spec = {
        "data": data | {"format": "Instruction"},
        "model": {"architecture": None, "base": {"claimName": "models", "path": path}},
        "evaluation": {"labels": [f"{label}{i:06}" for i in range(64)]},
    }
    annotations = by_kind(spec)["Job"]["spec"]["template"]["metadata"]["annotations"]
    assert 200_000 < sum(len(key + value) for key, value in annotations.items()) < 256 * 1024


def test_each_code_that_a_retry_cannot_help_fails_the_worker_job() -> None:
    (*rules, disruption) = by_kind({})["Job"]["spec"]["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in rules} == {"FailJob"}
    assert {rule["onExitCodes"]["containerName"] for rule in rules} == {"prepare", "trainer"}, "not a sidecar's"
    assert all(set(rule["onExitCodes"]["values"]) == set(NOT_RETRYABLE) for rule in rules)
    assert disruption["action"] == "Ignore"


def test_pods_keep_away_from_excluded_nodes() -> None:
    affinity = by_kind({}, away_from=("b", "a"))["Job"]["spec"]["template"]["spec"]["affinity"]
    away = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["a", "b"]}
    required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required == {"nodeSelectorTerms": [{"matchExpressions": [away]}]}
    assert "affinity" not in by_kind({})["Job"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("spec", [LORA, transit(caCertificate=CA)])
def test_pods_meet_the_restricted_pod_security_standard(spec: dict[str, Any]) -> None:
    pod = by_kind(spec)["Job"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    assert {next(key for key in volume if key != "name") for volume in pod["volumes"]} <= {
        "downwardAPI",
        "persistentVolumeClaim",
        "emptyDir",
        "projected",
        "secret",
    }


def test_every_field_of_a_profile_is_in_the_golden_file() -> None:
    assert FULL.model_fields_set == set(type(FULL).model_fields)


def test_a_job_decides_over_its_profile_where_the_profile_lets_it_and_never_over_the_operator() -> None:
    metadata = by_kind(INJECTED)["Job"]["spec"]["template"]["metadata"]
    assert metadata["annotations"].keys() == {"sidecar.istio.io/inject", "note", labels.CONFIG}
    assert metadata["annotations"]["sidecar.istio.io/inject"] == "false"
    assert metadata["labels"] == labels.of_job(OWNER) | {labels.ATTEMPT: "1", "team": "platform"}


@pytest.mark.parametrize(("spec", "is_fixed"), [(LORA, True), (INJECTED, False)])
def test_the_user_is_left_to_the_namespace_if_the_profile_says_so_but_is_never_root(
    spec: dict[str, Any], is_fixed: bool
) -> None:
    security = by_kind(spec)["Job"]["spec"]["template"]["spec"]["securityContext"]
    assert (security.keys() >= {"runAsUser", "runAsGroup", "fsGroup"}) is is_fixed
    assert (security.keys() & {"runAsUser", "runAsGroup", "fsGroup"} == set()) is not is_fixed
    assert security["runAsNonRoot"] is True


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ({}, {}),
        (LORA["trainer"], {"DSTJ_ACCELERATORS": "2 nvidia.com/gpu"}),
        (INJECTED["trainer"], {"DSTJ_ACCELERATORS": "2 amd.com/gpu", "DSTJ_FABRIC": "1"}),
    ],
)
def test_both_containers_are_told_which_devices_were_asked_for(trainer: dict[str, Any], told: dict[str, str]) -> None:
    pod = by_kind({"trainer": trainer})["Job"]["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        assert {name: env[name] for name in ("DSTJ_ACCELERATORS", "DSTJ_FABRIC") if name in env} == told


@pytest.mark.parametrize(
    ("nodes", "asked", "mode"),
    [
        (1, None, "ReadWriteOnce"),
        (2, None, "ReadWriteMany"),
        (1, "ReadWriteMany", "ReadWriteMany"),
        (2, "ReadWriteOnce", "ReadWriteOnce"),
    ],
)
def test_one_pod_needs_a_volume_for_one_machine_only(nodes: int, asked: str | None, mode: str) -> None:
    volume = {"accessMode": asked} if asked else {}
    claim = by_kind({"trainer": {"numNodes": nodes}, "checkpoint": {"volume": volume}})["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == [mode]


def test_pods_hold_no_token() -> None:
    objects = by_kind({})
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    assert objects["Job"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_the_keys_secret_alone_is_mounted_and_readable_by_the_group_only() -> None:
    volumes = by_kind(LORA)["Job"]["spec"]["template"]["spec"]["volumes"]
    (secret,) = (volume["secret"] for volume in volumes if volume["name"] == "keys")
    assert secret == {"secretName": "keys", "defaultMode": 0o440}


def test_each_claim_is_mounted_once_and_read_only() -> None:
    pod = by_kind(LORA)["Job"]["spec"]["template"]["spec"]
    mounts = [m for m in pod["initContainers"][0]["volumeMounts"] if m["mountPath"].startswith("/volumes/")]
    assert [(m["mountPath"], m["readOnly"]) for m in mounts] == [("/volumes/corpus", True), ("/volumes/models", True)]


def test_claims_of_all_sources_are_mounted() -> None:
    sources = [{"name": name, "claimName": name} for name in ("theirs", "ours")]
    volumes = by_kind({"data": {"train": None, "sources": sources}})["Job"]["spec"]["template"]["spec"]["volumes"]
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if volume["name"].startswith("claim-")]
    assert claims == ["ours", "theirs"]


def test_the_claim_of_an_adapter_is_mounted_as_that_of_its_base_where_the_model_is_prepared_and_trained() -> None:
    model = LORA["model"] | {"adapter": {"claimName": "results", "path": "sft/adapter"}}
    pod = by_kind(LORA | {"model": model})["Job"]["spec"]["template"]["spec"]
    for container in (pod["initContainers"][0], pod["containers"][0]):
        assert {"/volumes/models", "/volumes/results"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_every_node_reaches_the_others_under_the_name_that_the_job_controller_gives_its_pod() -> None:
    nodes = {"trainer": {"numNodes": 12}, "optimization": {"globalBatchSize": 12}}
    pod = by_kind(nodes)["Job"]["spec"]["template"]["spec"]
    variables = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    assert variables["DSTJ_RENDEZVOUS"] == "demo-a1-0.dstj-demo:29400"
    addresses = [node_address(variables | {"JOB_COMPLETION_INDEX": str(index)}) for index in range(12)]
    assert addresses == [f"demo-a1-{index}.{pod['subdomain']}" for index in range(12)]


def test_the_raw_data_are_out_of_reach_when_training_begins() -> None:
    pod = by_kind(LORA)["Job"]["spec"]["template"]["spec"]
    prepare, trainer = (
        {mount["mountPath"] for mount in container["volumeMounts"] if mount["mountPath"].startswith("/volumes/")}
        for container in (pod["initContainers"][0], pod["containers"][0])
    )
    assert prepare == {"/volumes/corpus", "/volumes/models"}
    assert trainer == {"/volumes/models"}


@pytest.mark.parametrize(
    ("cpu", "processes", "threads"),
    [("16", 2, "8"), ("500m", 1, "1"), ("1500m", 1, "1"), (3, 2, "1"), ("2k", 1, None), (None, 1, None)],
)
def test_threads_share_the_cpu_limit(cpu: str | int | None, processes: int, threads: str | None) -> None:
    limits = {"memory": "1Gi"} | ({"cpu": cpu} if cpu is not None else {})
    trainer = {"numProcPerNode": processes, "resourcesPerNode": {"limits": limits}}
    env = by_kind({"trainer": trainer})["Job"]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {v["name"]: v.get("value") for v in env}.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    ("cidr", "holes"),
    [
        ("10.0.0.0/8", None),
        ("128.0.0.0/1", ["169.254.0.0/16"]),
        ("168.0.0.0/5", ["169.254.0.0/16"]),
        ("fc00::/7", ["fd00:ec2::254/128"]),
        ("fe00::/7", ["fe80::/10"]),
        ("2002::/16", ["2002:a9fe::/32"]),
        ("2001:db8::/32", None),
    ],
)
def test_no_egress_rule_reaches_a_metadata_service(cidr: str, holes: list[str] | None) -> None:
    policy = by_kind({"network": {"egress": [{"cidr": cidr, "ports": [80]}]}})["NetworkPolicy"]
    (block,) = (peer["ipBlock"] for peer in policy["spec"]["egress"][-1]["to"])
    assert block == {"cidr": cidr} | ({"except": holes} if holes else {})


def test_link_local_addresses_are_open_for_dns_only() -> None:
    egress = by_kind({})["NetworkPolicy"]["spec"]["egress"]
    (rule,) = (rule for rule in egress if {"ipBlock": {"cidr": "169.254.0.0/16"}} in rule["to"])
    assert {port["port"] for port in rule["ports"]} == {53}
