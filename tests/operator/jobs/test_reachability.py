"""Who can reach whom under the NetworkPolicies of random jobs in random namespaces."""

import ipaddress
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_operator.api.isolation import METADATA_NETWORKS
from deepseek_operator.jobs import labels
from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.manifests import children
from deepseek_operator.objects.observed import Manifest, Owner
from deepseek_trainer.contract.names import METRICS_PORT
from support.builders.operator import SETTINGS, a_spec
from support.judges import reachability
from support.judges.reachability import EVERYTHING, NOTHING, Address

OTHERS = {"kube-system": False, SETTINGS.operator_namespace: False, "prometheus": True}  # name: may scrape
# As the analyzer writes them.
DNS_CACHE = "{protocols:TCP, UDP,dst_ports:53}"
DNS_PODS = "{protocols:TCP, UDP,dst_ports:53,5353}"
METRICS = f"{{protocols:TCP,dst_ports:{METRICS_PORT}}}"
IPV4 = ("10.20.0.0/16", "203.0.113.7/32", "168.0.0.0/6", "128.0.0.0/1", "169.0.0.0/8")
IPV6 = ("2001:db8::/32", "fd00::/8", "fc00::/6", "8000::/1", "2000::/3")
METADATA = tuple(
    ipaddress.ip_address(text) for text in ("169.254.169.254", "fe80::1", "fd00:ec2::254", "2002:a9fe:a9fe::1")
)
EGRESS = st.fixed_dictionaries(
    {
        "cidr": st.sampled_from(IPV4 + IPV6),
        "ports": st.lists(st.sampled_from((80, 443, 5432)), min_size=1, max_size=2, unique=True),
    }
)
NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(lambda name: name not in OTHERS)


@dataclass(frozen=True)
class Job:
    name: str
    namespace: str
    isolated: bool
    egress: tuple[Manifest, ...]

    @property
    def owner(self) -> Owner:
        return Owner(self.namespace, self.name, f"{self.namespace}.{self.name}")


@dataclass(frozen=True)
class Pod:
    name: str
    namespace: str
    job: Job | None = None

    @property
    def endpoint(self) -> str:
        return reachability.endpoint(self.namespace, self.name)

    @property
    def is_isolated(self) -> bool:
        return self.job is not None and self.job.isolated


@dataclass(frozen=True)
class Cluster:
    """Namespaces, by name whether those in it may scrape; jobs with two pods each; a bystander everywhere."""

    namespaces: dict[str, bool]
    jobs: tuple[Job, ...]

    @property
    def pods(self) -> list[Pod]:
        of_jobs = [Pod(f"{job.owner.uid}-{index}", job.namespace, job) for job in self.jobs for index in range(2)]
        return of_jobs + [Pod(f"bystander-{name}", name) for name in self.namespaces]

    def may_scrape(self, pod: Pod) -> bool:
        return self.namespaces[pod.namespace] or pod.namespace == SETTINGS.operator_namespace

    @property
    def objects(self) -> Iterator[Manifest]:
        for name, may_scrape in self.namespaces.items():
            yield reachability.namespace(name, {SETTINGS.monitoring_label: str(may_scrape).lower()})
        for job in self.jobs:
            yield from (made for made in made_for(job) if made["kind"] == "NetworkPolicy")
        for pod in self.pods:
            yield reachability.pod(pod.namespace, pod.name, labels.of_job(pod.job.owner) if pod.job else {"app": "b"})


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """With namesakes; the first job is isolated: without one nothing would be shown."""
    teams = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))

    def job(number: int) -> Job:
        isolated = number == 0 or draw(st.booleans())
        egress = draw(st.lists(EGRESS, max_size=2)) if isolated else []
        name, team = f"job-{number // len(teams)}", teams[number % len(teams)]
        return Job(name, team, isolated, tuple(egress))

    jobs = tuple(job(number) for number in range(draw(st.integers(1, 4))))
    return Cluster({**{team: draw(st.booleans()) for team in teams}, **OTHERS}, jobs)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reachability")


@settings(max_examples=12)  # a computation takes up to a second
@given(clusters())
def test_jobs_pods_reach_whom_they_are_meant_to_and_never_cloud_metadata(directory: Path, cluster: Cluster) -> None:
    ways = reachability.computed(directory, cluster.objects)
    for source, target in itertools.permutations(cluster.pods, 2):
        found = ways.get((source.endpoint, target.endpoint), NOTHING)
        assert found == intended(cluster, source, target), f"{source} -> {target}"
    isolated = [pod for pod in cluster.pods if pod.is_isolated]
    assert isolated
    for pod, address in itertools.product(isolated, METADATA):
        assert reachability.way_to(ways, pod.endpoint, address) == (DNS_CACHE if address.version == 4 else NOTHING)
    for pod in isolated:
        for address in edges(pod):
            found = reachability.way_to(ways, pod.endpoint, address)
            assert reachability.ports_of(found) == intended_ports(pod, address), f"{pod} -> {address}: {found}"


def intended(cluster: Cluster, source: Pod, target: Pod) -> str:
    if source.is_isolated:
        if source.job is target.job:
            return EVERYTHING
        return DNS_PODS if target.namespace == SETTINGS.dns_namespace else NOTHING
    if target.is_isolated:
        return METRICS if cluster.may_scrape(source) else NOTHING
    return EVERYTHING


def intended_ports(pod: Pod, address: Address) -> set[int]:
    if any(address in network for network in METADATA_NETWORKS):
        return {53} if address in ipaddress.ip_network("169.254.0.0/16") else set()
    assert pod.job is not None
    rules = (rule for rule in pod.job.egress if address in ipaddress.ip_network(rule["cidr"]))
    return {port for rule in rules for port in rule["ports"]}


def edges(pod: Pod) -> Iterator[Address]:
    """The first and the last address of every network that matters, and those just outside."""
    assert pod.job is not None
    networks = [ipaddress.ip_network(rule["cidr"]) for rule in pod.job.egress]
    for network in (*networks, *METADATA_NETWORKS):
        yield from (network[0], network[-1], network[0] - 1)
        if int(network[-1]) + 1 < 2**network.max_prefixlen:
            yield network[-1] + 1


def made_for(job: Job) -> tuple[Manifest, ...]:
    isolation = "Isolated" if job.isolated else "Unmanaged"
    spec = a_spec(network={"isolation": isolation, "egress": list(job.egress)})
    return children(Blueprint(spec, job.owner, None, SETTINGS, attempt=1, job_labels={}))
