"""Who can reach whom under the NetworkPolicies of random jobs, as an independent analyzer computes it."""

import ipaddress
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from nca.nca_cli import nca_main

from deepseek_operator import labels
from deepseek_operator.isolation import METADATA_NETWORKS
from deepseek_operator.manifests import children
from deepseek_operator.observed import Manifest, Owner
from operator_builders import SETTINGS, a_spec

TEAMS = ("ml", "bio")
OTHERS = {"kube-system": {}, SETTINGS.operator_namespace: {}, "prometheus": {SETTINGS.monitoring_label: "true"}}
# As the analyzer writes them.
EVERYTHING = "All connections"
NOTHING = "No connections"
DNS = "{protocols:TCP, UDP,dst_ports:53}"
METRICS = f"{{protocols:TCP,dst_ports:{SETTINGS.metrics_port}}}"
EGRESS = st.fixed_dictionaries(
    {
        "cidr": st.sampled_from(("10.20.0.0/16", "203.0.113.7/32", "168.0.0.0/6", "128.0.0.0/1", "169.0.0.0/8")),
        "ports": st.lists(st.sampled_from((80, 443, 5432)), min_size=1, max_size=2, unique=True),
    }
)


@dataclass(frozen=True)
class Job:
    number: int
    isolated: bool
    egress: tuple[Manifest, ...]

    @property
    def namespace(self) -> str:
        return TEAMS[self.number % 2]

    @property
    def owner(self) -> Owner:
        return Owner(self.namespace, f"job-{self.number // 2}", f"uid-{self.number}")  # namesakes in both namespaces


@dataclass(frozen=True)
class Pod:
    name: str
    namespace: str
    job: Job | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.namespace}/{self.name}[Pod]"

    @property
    def is_isolated(self) -> bool:
        return self.job is not None and self.job.isolated


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    def job(number: int) -> Job:
        isolated = draw(st.booleans())
        egress = draw(st.lists(EGRESS, max_size=2)) if isolated else []
        return Job(number, isolated, tuple(egress))

    return [job(number) for number in range(draw(st.integers(1, 4)))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reachability")


@settings(max_examples=12)  # a computation takes up to a second
@given(jobs())
def test_jobs_pods_reach_whom_they_are_meant_to_and_never_cloud_metadata(directory: Path, jobs: list[Job]) -> None:
    pods = [pod for job in jobs for pod in pods_of(job)] + bystanders()
    ways = computed(directory, jobs, pods)
    for source, target in itertools.permutations(pods, 2):
        found = ways.get((source.endpoint, target.endpoint), NOTHING)
        assert found == intended(source, target), f"{source} -> {target}"
    metadata = [(source, way) for (source, target), way in ways.items() if is_metadata(target)]
    isolated = {pod.endpoint for pod in pods if pod.is_isolated}
    assert all(way == DNS for source, way in metadata if source in isolated), metadata


def intended(source: Pod, target: Pod) -> str:
    if source.job is target.job and source.is_isolated:
        return EVERYTHING
    if target.is_isolated:
        return METRICS if source.namespace in {SETTINGS.operator_namespace, "prometheus"} else NOTHING
    if source.is_isolated:
        return DNS if target.namespace == "kube-system" else NOTHING
    return EVERYTHING


def pods_of(job: Job) -> list[Pod]:
    return [Pod(f"{job.owner.uid}-{index}", job.namespace, job) for index in range(2)]


def bystanders() -> list[Pod]:
    return [Pod(f"bystander-{namespace}", namespace) for namespace in (*TEAMS, *OTHERS)]


def computed(directory: Path, jobs: list[Job], pods: list[Pod]) -> dict[tuple[str, str], str]:
    """What the analyzer says of (source, target) under the policies that the operator would apply."""
    objects, result = directory / "objects.yaml", directory / "ways.txt"
    namespaces = [(name, {}) for name in TEAMS] + list(OTHERS.items())
    manifests = [namespace(name, also) for name, also in namespaces]
    manifests += [made for job in jobs for made in made_for(job) if made["kind"] == "NetworkPolicy"]
    objects.write_text(yaml.safe_dump_all(manifests + [manifest(pod) for pod in pods]))
    result.unlink(missing_ok=True)  # the analyzer appends
    where = [f"--{flag}={objects}" for flag in ("connectivity", "pod_list", "ns_list")]
    nca_main([*where, "--output_format=txt_no_fw_rules", f"--file_out={result}", "--return_0"])
    found = re.findall(r"^(\S+) => (\S+) : (.+)$", result.read_text(), re.MULTILINE)
    return {(source, target): way for source, target, way in found}


def made_for(job: Job) -> tuple[Manifest, ...]:
    isolation = "Isolated" if job.isolated else "Unmanaged"
    spec = a_spec(network={"isolation": isolation, "egress": list(job.egress)})
    return children(spec, job.owner, None, SETTINGS, attempt=1, job_labels={})


def namespace(name: str, also: dict[str, str]) -> Manifest:
    meta = {"name": name, "labels": {"kubernetes.io/metadata.name": name, **also}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}


def manifest(pod: Pod) -> Manifest:
    own = labels.of_job(pod.job.owner) if pod.job else {"app": "bystander"}
    meta = {"name": pod.name, "namespace": pod.namespace, "labels": own | {"name": pod.name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [{"name": "only"}]}}


def is_metadata(addresses: str) -> bool:
    """Whether a range `first-last` has an address of a cloud's metadata service in it."""
    if "-" not in addresses or "/" in addresses:
        return False
    first, last = (ipaddress.ip_address(address) for address in addresses.split("-"))
    blocks = ipaddress.summarize_address_range(first, last)
    return any(block.overlaps(bad) for block in blocks for bad in METADATA_NETWORKS if block.version == bad.version)
