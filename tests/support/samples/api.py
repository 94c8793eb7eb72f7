"""Samples for every rule of the API: changes to the smallest spec that hold it, and ones that break it and no other.

tests/operator asks the models and the generated schema, tests/e2e the real API server.
"""

from typing import Any

from support.builders.operator import IMAGE, merged

BASE = {"model": {"architecture": None, "base": {"claimName": "models"}}}
DORA = {"method": {"lora": {"dora": True}}}
LORA, QLORA, AUTO = ({"method": {"type": type_}} | BASE for type_ in ("LoRA", "QLoRA", "Auto"))
DROPOUT = {"optimization": {"dropout": 0.1}}
FROZEN = {"method": {"frozenLayers": 1}} | BASE
VALIDATION = {"claimName": "held-out"}
ADAPTER = {"export": {"formats": ["Adapter", "Merged"]}}
ADDED = {"model": BASE["model"] | {"adapter": {"claimName": "models", "path": "adapter"}}}
BALANCED = {"data": {"balanceBy": "label"}}
LAST_ANSWER = {"data": {"format": "Instruction", "multiTurn": "LastAnswer"}}
BOTH = {"validation": VALIDATION, "validationFraction": 0.1}
CLASSES = {"evaluation": {"labels": ["a", "b"]}, "data": {"format": "Instruction"}}
KEY = {"checkpoint": {"encryption": {"keyRef": {"secretName": "keys"}}}}


def long(choice: str, data_format: str) -> dict[str, Any]:
    return {"data": {"longRecords": choice, "format": data_format}}


DROP = long("Drop", "Preference")


def transit(address: str = "https://10.20.0.7:8200", **fields: Any) -> dict[str, Any]:
    """A job whose key a server keeps."""
    given = {"address": address, "keyName": "training", "auth": {"serviceAccount": {"role": "trainer"}}} | fields
    return {"checkpoint": {"encryption": {"keyRef": {"vaultTransit": given}}}}


def scheduled(schedule: str, **optimization: Any) -> dict[str, Any]:
    return {"optimization": {"schedule": schedule} | optimization}


def held_out(fraction: float) -> dict[str, Any]:
    return {"data": {"validationFraction": fraction}}


NO_KEY = {"checkpoint": {"encryption": {"keyRef": {}}}}
TOKEN = {"tokenSecret": {"secretName": "tokens"}}
LOGIN = {"serviceAccount": {"role": "trainer"}}
CA, CA_SECRET = {"configMapName": "ca"}, {"secretName": "ca"}
BY_NAME = "https://vault.example.org:8200"


def out_to_vault(**rule: Any) -> dict[str, Any]:
    """A job whose key server has a name, with a way out of its network."""
    return transit(BY_NAME) | {"network": {"egress": [{"cidr": "10.20.0.0/24", "ports": [443, 8200]} | rule]}}


def preferring(**changes: Any) -> dict[str, Any]:
    """A job that learns from pairs of answers, with `changes` of whole parts."""
    return {"data": {"format": "Preference"}, **BASE, **changes}


def by_loss(loss: str, **settings: Any) -> dict[str, Any]:
    """A job that learns from pairs of answers by `loss`."""
    return preferring(method={"preference": {"loss": loss, **settings}})


IMAGES = {"height": 32, "width": 32}
RESNET = {"resnet": {"stemWidth": 8, "stages": [{"width": 32, "blocks": 1}], "groups": 8}}
VIT = {"vit": {"patchSize": 8, "hiddenSize": 8, "numLayers": 1, "numHeads": 2, "intermediateSize": 8}}


def seeing(vision: Any = RESNET, images: Any = IMAGES, data: Any = None, **changes: Any) -> dict[str, Any]:
    """A job that learns to classify images, with `changes` of whole parts."""
    data = {"format": "Images", "images": images} | (data or {})
    return {"data": data, "model": {"architecture": None, "vision": vision}, **changes}


def resnet(width: int = 32, **fields: int) -> dict[str, Any]:
    return merged(RESNET, {"resnet": {"stages": [{"width": width, "blocks": 2}]} | fields})


def gpus(number: Any, processes: int) -> dict[str, Any]:
    return {"trainer": {"resourcesPerNode": {"limits": {"nvidia.com/gpu": number}}, "numProcPerNode": processes}}


def devices(limits: dict[str, Any], requests: dict[str, Any] | None = None, processes: int = 1) -> dict[str, Any]:
    resources = {"limits": limits} | ({"requests": requests} if requests else {})
    return {"trainer": {"resourcesPerNode": resources, "numProcPerNode": processes}}


def pod_label(key: str) -> dict[str, Any]:
    """A job with a profile that puts a label on its pods."""
    return {"trainer": {"image": None, "profile": "gpu", "podMetadata": {"labels": {key: "x"}}}}


def annotation(key: str) -> dict[str, Any]:
    return {"trainer": {"image": None, "profile": "gpu", "podMetadata": {"annotations": {key: "x"}}}}


OWN_IMAGE = {"trainer": {"image": IMAGE, "profile": None}}
MIG = "nvidia.com/mig-1g.10gb"


def spread(strategy: str, **optimization: Any) -> dict[str, Any]:
    return {"optimization": {"strategy": strategy} | optimization}


def kv_heads(number: int) -> dict[str, Any]:
    return {"model": {"architecture": {"numKeyValueHeads": number}}}


MUON = {"optimization": {"optimizer": "Muon"}}


def built(family: str, **fields: int) -> dict[str, Any]:
    return {"model": {"architecture": {"family": family} | fields}}


def experts(**fields: int) -> dict[str, Any]:
    return built("DeepSeekV3", **fields)


def on(*modules: str) -> dict[str, Any]:
    return merged(LORA, {"method": {"lora": {"targetModules": list(modules)}}})


def volume(**fields: str) -> dict[str, Any]:
    return {"checkpoint": {"volume": fields}}


def egress(*cidrs: str, **network: Any) -> dict[str, Any]:
    return {"network": {"egress": [{"cidr": cidr, "ports": [443]} for cidr in cidrs], **network}}


def priority(name: str) -> dict[str, Any]:
    return {"scheduling": {"priorityClassName": name}}


def image(name: str) -> dict[str, Any]:
    return {"trainer": {"image": f"{name}@sha256:" + "0" * 64}}


def mix(*names: str, **minimum: float) -> dict[str, Any]:
    """Sources instead of train; `minimum` shares by name."""
    shares = {name: {"minimumShare": share} for name, share in minimum.items()}
    sources = [{"name": name, "claimName": "corpus", "path": name} | shares.get(name, {}) for name in names]
    return {"data": {"train": None, "sources": sources}}


# How the message begins, what holds the rule, what breaks it.
RULES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("path must be relative", {"data": {"train": {"path": "a/..b"}}}, {"data": {"train": {"path": "a/../b"}}}),
    ("path must be relative", {"data": {"validation": {"claimName": "c"}}}, {"data": {"train": {"path": "/etc"}}}),
    ("path must be relative", LORA, merged(LORA, {"model": {"base": {"path": ".."}}})),
    ("hiddenSize must be a multiple", {}, {"model": {"architecture": {"hiddenSize": 66}}}),
    ("numHeads must be a multiple", kv_heads(2), kv_heads(3)),
    *(
        ("numExperts, expertsPerToken, numSharedExperts", experts(**{name: 8}), built("ALBERT", **{name: 8}))
        for name in ("numExperts", "numSharedExperts", "expertIntermediateSize", "kvLoraRank", "qLoraRank")
    ),
    ("numExperts, expertsPerToken, numSharedExperts", experts(expertsPerToken=2), built("Llama", expertsPerToken=2)),
    ("numExperts, expertsPerToken, numSharedExperts", experts(firstDenseLayers=0), built("Llama", firstDenseLayers=0)),
    ("numKeyValueHeads is not read", built("ALBERT", numKeyValueHeads=2), experts(numKeyValueHeads=2)),
    ("expertsPerToken must not exceed", experts(expertsPerToken=8), experts(expertsPerToken=9)),
    ("expertsPerToken must not exceed", experts(numExperts=3), experts(numExperts=2, expertsPerToken=3)),
    ("firstDenseLayers must be less", experts(firstDenseLayers=1), experts(firstDenseLayers=2)),
    ("optimization.optimizer Muon takes", built("ALBERT") | MUON, experts() | MUON),
    ("give exactly one of base", {}, {"model": {"base": {"claimName": "models"}}}),
    ("give exactly one of base", LORA, {"model": {"architecture": None}}),
    ("adapter needs base", ADDED, {"model": {"adapter": {"claimName": "models"}}}),
    ("export.formats Adapter with model.adapter", LORA | ADAPTER, LORA | ADDED | ADAPTER),
    ("model.adapter is for models of language", ADDED, seeing(**ADDED)),
    ("give exactly one of train", {}, {"data": {"train": None}}),
    ("give exactly one of train", mix("a", "b"), merged(mix("a", "b"), {"data": {"train": VALIDATION}})),
    ("each of sources needs a name", mix("a", "b"), mix("a", "b", "a")),
    ("minimumShare, rounded up", mix("a", "b", a=0.6, b=0.4), mix("a", "b", a=0.6, b=0.4001)),
    ("minimumShare, rounded up", mix("a", "b", "c", a=0.929, b=0.07), mix("a", "b", "c", a=0.93, b=0.07)),
    ("minimumShare, rounded up", mix("a", "b", a=0.999), mix("a", "b", a=0.9991)),
    ("balanceBy gives every class", BALANCED, merged(mix("a", "b"), BALANCED)),
    ("give validation or", {"data": {"validation": VALIDATION}}, {"data": BOTH}),
    ("lora is not read", merged(LORA, {"method": {"lora": {"rank": 8}}}), {"method": {"lora": {"rank": 8}}}),
    ("lora is not read", {"method": {"type": "Auto", "lora": {"rank": 8}}}, {"method": {"lora": {}}}),
    ("targetModules [all-linear]", on("all-linear"), on("all-linear", "q_proj")),
    ("targetModules [all-linear]", on("v_proj", "q_proj"), on("q_proj", "all-linear")),
    ("frozenLayers is only read", FROZEN, merged(FROZEN, {"method": {"type": "LoRA"}})),
    ("frozenLayers is only read", FROZEN, merged(FROZEN, {"method": {"type": "Auto"}})),
    ("method.frozenLayers needs", FROZEN, {"method": {"frozenLayers": 1}}),
    ("strategies other than DDP", spread("FSDP"), spread("FSDP", optimizer="Muon")),
    ("strategies other than DDP", spread("DDP", optimizer="Muon"), spread("ZeRO3", optimizer="AdamW8bit")),
    ("offload is of FSDP's shards only", spread("FSDP", offload=True), {"optimization": {"offload": True}}),
    ("offload is of FSDP's shards only", spread("ZeRO3", offload=False), spread("ZeRO3", offload=True)),
    ("strategies ZeRO1 to ZeRO3 keep no", spread("FSDP", emaDecay=0.9), spread("ZeRO1", emaDecay=0.9)),
    ("strategies ZeRO1 to ZeRO3 do not compile", spread("FSDP", compile=True), spread("ZeRO2", compile=True)),
    ("no optimization.strategy but DDP", merged(LORA, spread("FSDP")), merged(QLORA, spread("FSDP"))),
    ("no optimization.strategy but DDP", merged(LORA, spread("ZeRO3")), merged(QLORA, spread("ZeRO3"))),
    ("data.format Preference needs", preferring(), {"data": {"format": "Preference"}}),
    (
        "method.preference is only read",
        preferring(method={"preference": {"beta": 0.3}}),
        {"method": {"preference": {}}, "data": {"format": "Instruction"}},
    ),
    (
        "optimization.labelSmoothing must be below",
        preferring(optimization={"labelSmoothing": 0.49}),
        preferring(optimization={"labelSmoothing": 0.5}),
    ),
    (
        "optimization.labelSmoothing is of loss DPO",
        preferring(method={"preference": {"loss": "DPO"}}, optimization={"labelSmoothing": 0.1}),
        preferring(method={"preference": {"loss": "ORPO"}}, optimization={"labelSmoothing": 0.1}),
    ),
    ("oddsRatioWeight is only read", by_loss("ORPO", oddsRatioWeight=0.2), by_loss("DPO", oddsRatioWeight=0.2)),
    ("beta is not read with loss ORPO", by_loss("DPO", beta=0.2), by_loss("ORPO", beta=0.2)),
    (
        "evaluation.labels needs",
        preferring(),
        preferring(evaluation={"labels": ["a", "b"]}),
    ),
    ("data.format Images trains model.vision", seeing(), seeing(model={})),
    ("data.format Images trains model.vision", {}, {"model": {"architecture": None, "vision": RESNET}}),
    ("give exactly one of base, arch", seeing(**BASE), seeing(model=BASE["model"] | {"vision": RESNET})),
    ("give exactly one of resnet", seeing(VIT), seeing(RESNET | VIT)),
    ("give exactly one of resnet", seeing(RESNET), seeing({})),
    ("groups must be a power", seeing(resnet(groups=4)), seeing(resnet(groups=3, stemWidth=12, width=48))),
    ("stemWidth must be a multiple", seeing(resnet(stemWidth=24)), seeing(resnet(stemWidth=12))),
    ("stemWidth must be a multiple", seeing(resnet(width=64)), seeing(resnet(width=48))),
    ("hiddenSize must be a multiple", seeing(VIT), seeing(merged(VIT, {"vit": {"numHeads": 3}}))),
    ("data.images.height and", seeing(VIT), seeing(VIT, IMAGES | {"width": 36})),
    ("channels must be 1", seeing(images=IMAGES | {"channels": 1}), seeing(images=IMAGES | {"channels": 2})),
    ("imageField and labelField", seeing(), seeing(images=IMAGES | {"imageField": "label"})),
    ("fields gives other names", {"data": {"fields": {"role": "who"}}}, {"data": {"fields": {"rolle": "who"}}}),
    ("fields and ignoredFields are", seeing(), seeing(data={"fields": {"role": "who"}})),
    ("fields and ignoredFields are", {"data": {"ignoredFields": ["id"]}}, seeing(data={"ignoredFields": ["id"]})),
    ("images belongs to format", {}, {"data": {"images": IMAGES}}),
    ("sequenceLength and curriculum", seeing(), seeing(data={"sequenceLength": 512})),
    ("sequenceLength and curriculum", seeing(), seeing(data={"curriculum": {}})),
    ("longRecords Split is of format Text", {"data": {"longRecords": "Split"}}, long("Split", "Instruction")),
    ("parts of answers do not", merged(preferring(), DROP), merged(preferring(), long("Cut", "Preference"))),
    ("encoding is of files of text", {"data": {"encoding": "GB18030"}}, seeing(data={"encoding": "GB18030"})),
    ("longRecords and multiTurn are of texts", seeing(), seeing(data={"longRecords": "Drop"})),
    ("multiTurn LastAnswer is of format Instruction", LAST_ANSWER, {"data": {"multiTurn": "LastAnswer"}}),
    ("balanceBy balances the", seeing(data={"balanceBy": "label"}), seeing(data={"balanceBy": "kind"})),
    ("model.chatTemplate is of language", seeing(), merged(seeing(), {"model": {"chatTemplate": "x"}})),
    ("data.format Images trains all", seeing(), seeing(**AUTO)),
    ("data.format Images trains all", seeing(**BASE), seeing(**FROZEN)),
    ("data.format Images is trained with", seeing(**spread("FSDP")), seeing(**spread("ZeRO2"))),
    ("data.format Images is trained with", seeing(), seeing(optimization={"optimizer": "Muon"})),
    ("optimization.dropout, compile and", seeing(), seeing(**DROPOUT)),
    ("optimization.dropout, compile and", seeing(), seeing(optimization={"compile": True})),
    ("optimization.dropout, compile and", seeing(), seeing(optimization={"logitsMebibytes": 32})),
    ("evaluation.generations and", seeing(), seeing(evaluation={"generations": 5})),
    ("evaluation.generations and", seeing(), seeing(evaluation={"maxNewTokens": 5})),
    ("strategies ZeRO1 to ZeRO3 learn", preferring(**spread("FSDP")), preferring(**spread("ZeRO2"))),
    ("give epochs or maxSteps", {"optimization": {"maxSteps": None, "epochs": 3}}, {"optimization": {"epochs": 3}}),
    *(
        (f"{field} is only read", scheduled(schedule, **{field: value}), scheduled("Cosine", **{field: value}))
        for field, value, schedule in (
            ("cycles", 8, "CosineRestarts"),
            ("decayFraction", 0.5, "WSD"),
            ("plateauPatience", 3, "Plateau"),
        )
    ),
    (
        "give warmupSteps or warmupFraction",
        {"optimization": {"warmupFraction": 0.1}},
        {"optimization": {"warmupSteps": 3, "warmupFraction": 0.1}},
    ),
    *(
        ("data.validationFraction: 0 leaves", merged(held_out(0.1), asking), merged(held_out(0), asking))
        for asking in (
            CLASSES,
            {"evaluation": {"requireImprovement": True}},
            {"optimization": {"earlyStopping": {}}},
            {"optimization": {"schedule": "Plateau"}},
        )
    ),
    (
        "retention.keepEvery must be a multiple",
        {"checkpoint": {"interval": {"steps": 50}, "retention": {"keepEvery": 100}}},
        {"checkpoint": {"interval": {"steps": 50}, "retention": {"keepEvery": 75}}},
    ),
    ("give steps, seconds or both", {"checkpoint": {"interval": {"seconds": 60}}}, {"checkpoint": {"interval": {}}}),
    ("must be NAME@sha256:", image("r/a"), {"trainer": {"image": "r/a:latest"}}),
    # A Cyrillic o.
    ("must be NAME@sha256:", image("registry.local:5000/a-b/c_d:v1.2"), image("registry.l\u043ecal/a")),
    ("give exactly one of image", {"trainer": {"image": None, "profile": "cpu"}}, {"trainer": {"profile": "cpu"}}),
    ("give exactly one of image", {}, {"trainer": {"image": None}}),
    ("numProcPerNode must equal", gpus("2", 2), gpus("1", 2)),
    ("numProcPerNode must equal", gpus(4, 4), gpus(4, 2)),
    ("numProcPerNode must equal", devices({MIG: 2}, processes=2), devices({MIG: 2})),
    *(
        ("limits and requests may", devices(good), devices(bad))
        for good, bad in (
            ({"hugepages-2Mi": "1Gi", "memory": "2Gi"}, {"huawei.com/Ascend910": 8}),
            ({"rdma/hca_shared_devices_a": 1}, {"amd.com/gpu": 1}),
            ({"vpc.amazonaws.com/efa": 4}, {"habana.ai/gaudi": 8}),
            ({"nvidia.com/gpu.shared": 1}, {"nvidia.com/gpus": 1}),
            ({"ephemeral-storage": "1Gi"}, {"storage": "1Gi"}),
            ({"nvidia.com/mig-1g.5gb.me": 1}, {"google.com/tpu": 4}),
        )
    ),
    ("limits may name one kind", devices({MIG: 1}), devices({"nvidia.com/gpu": 1, MIG: 1})),
    ("a device in requests", devices({MIG: 1}, {MIG: "1"}), devices({}, {MIG: 1})),
    ("a device in requests", devices({"cpu": 2}, {"cpu": 1}), devices({"rdma/a": 2}, {"rdma/a": 1})),
    ("podMetadata needs a profile", pod_label("team"), merged(pod_label("team"), OWN_IMAGE)),
    *(
        ("keys of labels and", annotation(good), annotation(bad))
        for good, bad in (
            ("sidecar.istio.io/inject", "a/b/c"), ("n" * 63, "n" * 64), ("a.b/c_d", "A.b/c"), ("a-b", "-b"),
        )
    ),
    *(
        ("labels and annotations of", annotation(good), annotation(bad))
        for good, bad in (
            ("sidecar.istio.io/inject", "training.dstj.io/config"),
            ("kubernetes.io/name", "app.kubernetes.io/name"),
            ("batch.kubernetes.iox/a", "batch.kubernetes.io/job-completion-index"),
            ("queue-name", "kueue.x-k8s.io/queue-name"),
        )
    ),
    ("labels and annotations of", pod_label("team"), pod_label("job-name")),
    ("labels and annotations of", pod_label("team"), pod_label("training.dstj.io/job-uid")),
    ("storageClassName is for", volume(claimName="mine"), volume(claimName="mine", storageClassName="fast")),
    *(
        ("cidr must not be the whole", egress(good), egress("10.0.0.0/8", bad))
        for good, bad in (
            ("0.0.0.0/1", "0.0.0.0/0"), ("2001:db8::/32", "::/0"), ("169.25.0.0/16", "169.254.169.254/32"),
            ("169.0.0.0/8", "169.254.0.0/16"), ("2000::/3", "fe80::/10"), ("fc00::/7", "FE80::/10"),
            ("fec0::/10", "febf::/16"), ("fe00::/9", "fe90::1/128"), ("fd00:ec2::/64", "fd00:ec2::254/128"),
            ("fd00:ec2::253/128", "FD00:0EC2:0:0:0:0:0:254/128"), ("100::/8", "64:ff9b::a9fe:a9fe/128"),
            ("64ff:9b00::/32", "64:ff9b::169.254.169.254/128"), ("8000::/1", "::/1"), ("100::/64", "::a9fe:a9fe/128"),
            ("2002:a9ff::/32", "2002:a9fe:a9fe::/48"),
        )
    ),
    *(
        ("cidr must be an IPv4 or", egress("10.0.10.0/24"), egress(bad))
        for bad in (
            "0169.254.0.0/16", "1.2.3/24", "1.2.3.4/33", ":::/64", "::ffff:169.254.169.254/128",
            "::ffff:a9fe:a9fe/128", "0:0:0:0:0:FFFF:a9fe:a9fe/128", "::ffff:0:0/96",
        )
    ),
    ("egress is only enforced", {"network": {"isolation": "Unmanaged"}}, egress("10.0.0.0/8", isolation="Unmanaged")),
    *(("give exactly one of secretName and", KEY, bad) for bad in (NO_KEY, merged(KEY, transit()))),
    ("give exactly one of secretName and", transit(), NO_KEY),
    ("give exactly one of serviceAccount", transit(auth=TOKEN), transit(auth={})),
    ("give exactly one of serviceAccount", transit(auth=LOGIN), transit(auth=TOKEN | LOGIN)),
    *(
        (
            "audience must not be",
            transit(auth=merged(LOGIN, {"serviceAccount": {"audience": good}})),
            transit(auth=merged(LOGIN, {"serviceAccount": {"audience": bad}})),
        )
        for good, bad in (
            ("https://vault.example.org", "https://kubernetes.default.svc.cluster.local"),
            ("kubernetes", "kubernetes.default.svc"),
        )
    ),
    ("give exactly one of configMapName", transit(caCertificate=CA), transit(caCertificate=CA | CA_SECRET)),
    ("give exactly one of configMapName", transit(caCertificate=CA_SECRET), transit(caCertificate={"key": "a"})),
    *(
        ("checkpoint.encryption.keyRef.vaultTransit.address must", transit(f"https://{good}:8200"),
         transit(f"https://{bad}:8200"))
        for good, bad in (
            ("10.0.0.1", "10.0.0.01"), ("169.253.0.1", "169.254.169.254"), ("1.2.3.4", "1.2.3"),
            ("8.8.8.8", "2852039166"),
            ("[2001:db8::7]", "[2001:db8:::7]"), ("[fd00:ec2::253]", "[fd00:ec2::254]"), ("[fec0::1]", "[FE80::1]"),
            ("[2002:a9ff::1]", "[2002:a9fe:a9fe::1]"), ("[100::1]", "[64:ff9b::a9fe:a9fe]"), ("[2000::1]", "[::1]"),
            ("[2000::1]", "[::ffff:a9fe:a9fe]"),
        )
    ),
    ("checkpoint.encryption.keyRef.vaultTransit.address with", out_to_vault(), transit(BY_NAME)),
    ("checkpoint.encryption.keyRef.vaultTransit.address with", out_to_vault(), out_to_vault(ports=[443])),
    ("checkpoint.encryption.keyRef.vaultTransit.address with", out_to_vault(), out_to_vault(protocol="UDP")),
    (
        "checkpoint.encryption.keyRef.vaultTransit.address with",
        transit(BY_NAME) | {"network": {"isolation": "Unmanaged"}},
        transit(BY_NAME) | {"network": {"isolation": "Isolated"}},
    ),
    (
        "checkpoint.encryption.keyRef.vaultTransit.address with",
        transit(BY_NAME) | {"trainer": {"image": None, "profile": "gpu"}},
        transit(BY_NAME) | OWN_IMAGE,
    ),
    ("priorityClassName must not", priority("system"), priority("system-node-critical")),
    ("optimization.globalBatchSize must", {"trainer": {"numNodes": 4}}, {"trainer": {"numNodes": 3}}),
    ("data.sealed and export.sealed", merged(KEY, {"data": {"sealed": True}}), {"data": {"sealed": True}}),
    ("data.sealed and export.sealed", {"export": {"sealed": False}}, {"export": {"sealed": True}}),
    ("export.formats Adapter", merged(LORA, ADAPTER), ADAPTER),
    ("labels must differ", CLASSES, {"evaluation": {"labels": ["a", "b", "a"]}, "data": {"format": "Instruction"}}),
    ("evaluation.labels needs", CLASSES, {"evaluation": {"labels": ["a", "b"]}}),
    ("optimization.dropout is for", DROPOUT, merged(LORA, DROPOUT)),
    ("optimization.dropout is for", merged(AUTO, {"optimization": {"dropout": 0}}), merged(AUTO, DROPOUT)),
    ("export.formats Adapter", merged(QLORA, ADAPTER), merged(AUTO, ADAPTER)),
    ("method.lora.dora needs whole", merged(LORA, DORA), merged(QLORA, DORA)),
    ("method.lora.dora needs whole", merged(LORA, DORA), merged(LORA, DORA | {"optimization": {"strategy": "FSDP"}})),
    ("method.type LoRA and QLoRA need", LORA, {"method": {"type": "LoRA"}}),
    ("method.type LoRA and QLoRA need", {"method": {"type": "Auto"}}, {"method": {"type": "QLoRA"}}),
]  # fmt: skip
MUTABLE = {"suspend": True, "runPolicy": {"maxRestarts": 9}, "scheduling": {"priorityClassName": "high"}}
IMMUTABLE: dict[str, dict[str, Any]] = {
    "trainer": {"numNodes": 4},
    "model": {"architecture": {"numLayers": 3}},
    "data": {"sequenceLength": 512},
    "method": {"type": "LoRA"},
    "optimization": {"seed": 1},
    "checkpoint": {"gracePeriodSeconds": 60},
    "network": {"isolation": "Unmanaged"},
    "evaluation": {"maxRows": 5},
    "export": {"sealed": False},
}
# What the schema itself limits: inside, outside.
BOUNDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"trainer": {"numNodes": 1}}, {"trainer": {"numNodes": 0}}),
    (
        {"trainer": {"resourcesPerNode": {"limits": {"cpu": 4}}}},
        {"trainer": {"resourcesPerNode": {"limits": {"cpu": "9e999"}}}},
    ),
    ({"data": {"validationFraction": 0.5}}, {"data": {"validationFraction": 0.51}}),
    ({"data": {"validationFraction": 0}}, {"data": {"validationFraction": -0.01}}),
    (
        {"optimization": {"maxSteps": None, "epochs": 0.01}},
        {"optimization": {"maxSteps": None, "epochs": 0}},
    ),
    ({"optimization": {"warmupFraction": 1}}, {"optimization": {"warmupFraction": 1.01}}),
    ({"data": {"balanceBy": "a" * 63}}, {"data": {"balanceBy": "a" * 64}}),
    ({"optimization": {"learningRate": 1e-9}}, {"optimization": {"learningRate": 0}}),
    (preferring(), preferring(method={"preference": {"beta": 0}})),
    (DROPOUT, {"optimization": {"dropout": 1}}),
    ({"checkpoint": {"resumeFrom": "12"}}, {"checkpoint": {"resumeFrom": "latest"}}),
    ({"export": {"formats": ["Merged"]}}, {"export": {"formats": []}}),
    (CLASSES, merged(CLASSES, {"evaluation": {"labels": ["a"]}})),
    (CLASSES, merged(CLASSES, {"evaluation": {"labels": ["a", "b" * 257]}})),
    ({"runPolicy": {"ttlSecondsAfterFinished": 0}}, {"runPolicy": {"ttlSecondsAfterFinished": -1}}),
    ({"runPolicy": {"maxDisruptions": 0}}, {"runPolicy": {"maxDisruptions": -1}}),
    ({"runPolicy": {"failedAttemptsHistoryLimit": 10}}, {"runPolicy": {"failedAttemptsHistoryLimit": 11}}),
    (egress("10.0.0.0/8"), egress("0.0.0.0/00")),
    (egress("10.0.0.0/8"), egress("example.org/8")),
    *(
        (transit(), transit(bad))
        for bad in (
            "http://10.20.0.7:8200",
            "https://10.20.0.7",
            "https://10.20.0.7:8200/",
            "https://10.20.0.7:65536",
            "https://user@10.20.0.7:8200",
            "HTTPS://10.20.0.7:8200",
            "https://10.20.0.7:0",
            "https://0x7f.1:8200",
            "https://10.20.0.7:8200#",
            "https://a b:8200",
            "https://[::1%25eth0]:8200",
        )
    ),
    (transit(mount="team/transit"), transit(mount="../sys")),
    (transit(mount="a.b"), transit(mount="transit/")),
    (transit(keyName="a.b-c_D"), transit(keyName="..")),
    (transit(keyName="a"), transit(keyName="a/../../sys/seal")),
    (transit(keyName="a"), transit(keyName="a?b")),
    (transit(auth={"serviceAccount": {"role": "a"}}), transit(auth={"serviceAccount": {"role": "a b"}})),
    (transit(auth={"serviceAccount": {"role": "a", "path": "jwt"}}), transit(auth={"serviceAccount": {"role": ""}})),
]
NAMES = [
    ("a", True), ("a" * 50, True), ("a" * 51, False), ("1a", False), ("a-", False), ("a.b", False), ("A", False),
    ("a\n", False),
]  # fmt: skip
