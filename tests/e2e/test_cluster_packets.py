"""Who reaches whom, by real connections under kube-router's firewall: without the policies everybody, with them few.

Ranks, strangers and the operator are real pods; those of jobs have an image that answers in place of a trainer.
"""

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product

import pytest

from support.builders.operator import merged
from support.cluster import kube, packets
from support.cluster.kube import OPERATOR_NAMESPACE, RELEASE, Manifest, Namespace, TrainingJob, a_job
from support.cluster.packets import Answers, Row, Way, World

# Whoever is on the left asks whoever is in the middle, each on each of the ways; last, whether that answers.
TABLE = """
stranger, elsewhere, other job       | rank 0, rank 1                   | TCP 9400, TCP 29400, UDP 29400 | no
monitoring, neighbour, operator      | rank 0, rank 1                   | TCP 9400                       | yes
monitoring, neighbour, operator      | rank 0, rank 1                   | TCP 29400, UDP 29400           | no
rank 0                               | rank 1                           | TCP 8000, TCP 29400, UDP 29400 | yes
rank 1                               | rank 0                           | TCP 8000, TCP 29400, UDP 29400 | yes
rank 0, rank 1                       | other job                        | TCP 9400, TCP 29400            | no
monitoring                           | service of the job               | TCP 9400                       | yes
stranger, other job                  | service of the job               | TCP 9400                       | no
rank 0, rank 1, other job            | stranger, elsewhere, monitoring  | TCP 8000, UDP 8000             | no
rank 0, rank 1, other job            | service of the stranger          | TCP 8000                       | no
rank 0, rank 1, other job            | operator                         | TCP 8080                       | no
rank 0, rank 1, other job            | API server                       | TCP 6443                       | no
rank 0, rank 1, other job            | service of the API server        | TCP 443                        | no
rank 0, rank 1, other job, operator  | node-0, node-1                   | TCP 10250                      | no
rank 0, rank 1, other job, operator  | metadata                         | TCP 80, UDP 80                 | no
rank 0, rank 1, other job, operator  | metadata                         | TCP 53, UDP 53                 | yes
rank 0, rank 1, other job, operator  | service of DNS, DNS pod          | TCP 53, UDP 53                 | yes
rank 0, rank 1, other job, operator  | DNS pod                          | TCP 8181                       | no
rank 0, rank 1                       | host                             | TCP 9001                       | yes
rank 0, rank 1                       | host                             | TCP 9002                       | no
other job, operator                  | host                             | TCP 9001, TCP 9002             | no
monitoring, test of the chart        | operator                         | TCP 8080                       | yes
stranger, elsewhere, neighbour       | operator                         | TCP 8080                       | no
operator                             | API server                       | TCP 6443                       | yes
operator                             | service of the API server        | TCP 443                        | yes
operator                             | stranger                         | TCP 8000, UDP 8443             | no
operator                             | stranger                         | TCP 8443                       | yes
stranger, elsewhere, other job       | rank 0 by IPv6, rank 1 by IPv6   | TCP 9400, TCP 29400, UDP 29400 | no
monitoring, operator                 | rank 0 by IPv6, rank 1 by IPv6   | TCP 9400                       | yes
rank 0                               | rank 1 by IPv6                   | TCP 8000, UDP 29400            | yes
rank 0, rank 1, other job            | stranger by IPv6                 | TCP 8000, UDP 8000             | no
rank 0, rank 1, other job            | operator by IPv6                 | TCP 8080                       | no
rank 0, rank 1, other job            | API server by IPv6               | TCP 6443                       | no
rank 0, rank 1, other job, operator  | node-0 by IPv6, node-1 by IPv6   | TCP 10250                      | no
rank 0, rank 1, other job, operator  | host by IPv6                     | TCP 9001                       | no
monitoring                           | operator by IPv6                 | TCP 8080                       | yes
stranger, elsewhere, neighbour       | operator by IPv6                 | TCP 8080                       | no
"""
IPV6 = " by IPv6"
ROWS = [Row(line) for line in TABLE.strip().splitlines()]
HOST, METADATA = "10.243.0.254", "169.254.169.254"
NODES = ("node-0", "node-1")
BOTH = socket.has_dualstack_ipv6()
FAMILY = socket.AF_INET6 if BOTH else socket.AF_INET
EGRESS = [{"cidr": f"{HOST}/32", "ports": [9001]}]
CHART_TEST = {"app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/component": "test"}


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """The host answers on two ports, and each node in place of a cloud's metadata service."""
    with ExitStack() as stack:
        for port in (9001, 9002):  # the kernel answers; nobody has to accept
            stack.enter_context(socket.create_server(("", port), family=FAMILY, backlog=128, dualstack_ipv6=BOTH))
        for node in NODES:
            inside = ("ip", "netns", "exec", f"dstj-{node}")
            kube.run(*inside, "ip", "address", "replace", f"{METADATA}/32", "dev", "lo")
            stack.callback(kube.run, *inside, "ip", "address", "delete", f"{METADATA}/32", "dev", "lo")
            server = subprocess.Popen([*inside, sys.executable, str(packets.ANSWER), METADATA, "53", "80"])
            stack.callback(server.wait)
            stack.callback(server.kill)
        yield


@pytest.fixture(scope="module")
def world(operator: None, machines: None, team: Namespace) -> Iterator[World]:
    image, strangers = packets.image(), {}
    with ExitStack() as stack:
        for name, labels in (("elsewhere", []), ("monitoring", ["training.dstj.io/monitoring=true"])):
            namespace = Namespace(f"{team.name}-{name[:4]}")
            stack.callback(namespace.delete)
            kube.kubectl("label", "namespace", namespace.name, "made-for=packets", *labels)
            strangers[name] = packets.a_pod(namespace.name, name, image)
        strangers |= {
            "stranger": packets.a_pod(team.name, "stranger", image),
            "neighbour": packets.a_pod(OPERATOR_NAMESPACE, "neighbour", image),
            "test of the chart": packets.a_pod(OPERATOR_NAMESPACE, "chart-test", image, **CHART_TEST),
        }
        stack.callback(kube.kubectl, "delete", "pod", "-n", OPERATOR_NAMESPACE, "neighbour", "chart-test", "--now")
        kube.apply(
            *strangers.values(),
            packets.a_service(team.name, "job", {"training.dstj.io/job-name": "probe"}, 9400),
            packets.a_service(team.name, "stranger", {"app": "stranger"}, 8000),
        )
        pods = ranks_of(team, image) | {name: packets.ready(pod) for name, pod in strangers.items()}
        pods["operator"] = kube.operator_pods()[0]
        yield World(pods, addresses(team, pods))


def ranks_of(team: Namespace, image: str) -> dict[str, Manifest]:
    """Of a job of two nodes whose profile has an egress rule, and of another without."""
    team.claim("corpus")
    jobs = []
    for name, nodes, egress in (("probe", 2, EGRESS), ("other", 1, [])):
        profile = f"{team.name}-{name}"
        kube.apply(merged(kube.profile(profile, image), {"spec": {"egress": egress}}))
        trainer = {"image": None, "profile": profile, "numNodes": nodes}
        jobs.append(TrainingJob(team, a_job(name, {"trainer": trainer})))
    pods = [pod for job in jobs for pod in kube.wait_until(f"pods of {job.name}", lambda job=job: running(job), 90)]
    return dict(zip(("rank 0", "rank 1", "other job"), pods, strict=True))


def running(job: TrainingJob) -> list[Manifest] | None:
    pods, wanted = job.pods, job.manifest["spec"]["trainer"]["numNodes"]
    return pods if [pod["status"]["phase"] for pod in pods] == ["Running"] * wanted else None


def addresses(team: Namespace, pods: dict[str, Manifest]) -> dict[str, str]:
    """Of pods, of Services, of machines."""
    (dns, *_) = packets.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"]
    (server,) = packets.get("endpointslice", "kubernetes")["endpoints"]
    names = {
        "service of DNS": ("kube-dns", "kube-system"),
        "service of the API server": ("kubernetes", "default"),
        "service of the job": ("job", team.name),
        "service of the stranger": ("stranger", team.name),
    }
    found = {"host": HOST, "metadata": METADATA, "API server": server["addresses"][0]}
    found |= {
        who: packets.get("service", name, "-n", place)["spec"]["clusterIP"] for who, (name, place) in names.items()
    }
    for name, pod in {**pods, "DNS pod": dns}.items():
        found |= both(name, [each["ip"] for each in pod["status"]["podIPs"]])
    for node in NODES:
        listed = packets.get("node", node)["status"]["addresses"]
        found |= both(node, [each["address"] for each in listed if each["type"] == "InternalIP"])
    return found | {f"{name}{IPV6}": f"fd00:243::{number}" for name, number in (("API server", 1), ("host", 254))}


def both(name: str, addresses: list[str]) -> dict[str, str]:
    return dict(zip((name, name + IPV6), addresses, strict=False))


@pytest.fixture(scope="module")
def rows(world: World) -> list[Row]:
    """Without those of IPv6 where the kernel has none."""
    has_ipv6 = f"rank 0{IPV6}" in world.addresses
    return [row for row in ROWS if has_ipv6 or IPV6 not in row.line]


@pytest.fixture(scope="module")
def wanted(rows: list[Row]) -> Answers:
    return {way: answer for row in rows for way, answer in row.wanted.items()}


def test_everybody_is_reached_without_policies_and_with_them_who_is_meant_to(
    team: Namespace, world: World, rows: list[Row], wanted: Answers, record_property: Callable[[str, object], None]
) -> None:
    with no_policies(team):
        refused = packets.settled(lambda: world.answers(wanted), dict.fromkeys(wanted, True))
    kube.wait_until("the operator makes the policies anew", lambda: len(packets.policies(team.name)) == 2, 90)
    wrong = packets.settled(lambda: world.answers(wanted), wanted)
    bare = {way: way not in refused for way in wanted}
    walled = {way: answer is not (way in wrong) for way, answer in wanted.items()}
    record_property(f"{len(wanted)} connections", "\n".join(["", *(row.found(bare, walled) for row in rows)]))
    assert (refused, wrong) == ([], [])


@contextmanager
def no_policies(team: Namespace) -> Iterator[None]:
    """A quota keeps the operator from making those of its jobs anew; the chart's is put back as Helm made it."""
    own = packets.policies(OPERATOR_NAMESPACE)
    team.kubectl("create", "quota", "no-policies", "--hard=count/networkpolicies.networking.k8s.io=0")
    try:
        for namespace in (OPERATOR_NAMESPACE, team.name):
            kube.kubectl("delete", "networkpolicies", "--all", "-n", namespace)
        yield
    finally:
        team.kubectl("delete", "quota", "no-policies")
        for policy in own:
            meta = {key: policy["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
            kube.apply({**policy, "metadata": meta})


def test_a_restart_of_firewall_or_kubelet_lets_nobody_in(world: World, wanted: Answers) -> None:
    for node, component in product("01", ("kube-router", "kubelet")):
        kube.cluster("restart", component, "--on", node)
    for node in NODES:
        kube.wait_until(f"the kubelet of {node}", lambda node=node: listens(world.addresses[node], 10250), 30)
    assert packets.settled(lambda: world.answers(wanted), wanted) == []


def listens(address: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0


def test_no_policy_knows_the_addresses_of_neighbours_and_the_nodes_close_them(world: World) -> None:
    """Link-local ones, which the kernel gives every pod; a firewall of policies lets them pass."""
    rank = next(pod for pod in (world.pods["rank 0"], world.pods["rank 1"]) if pod["spec"]["nodeName"] == "node-0")
    shown = packets.run_in(rank, "python", "-c", "print(open('/proc/net/if_inet6').read())")
    if not (digits := re.search(r"^(fe80\w+) .* eth0$", shown, re.MULTILINE)):
        pytest.skip("the kernel has no IPv6")
    address = ":".join(re.findall("....", digits[1])) + "%eth0"
    neighbours = World(world.pods, {"rank": address})
    way = Way("stranger", "rank", "TCP", 29400)
    rule = ("FORWARD", "-d", "fe80::/10", "!", "-p", "ipv6-icmp", "-j", "REJECT")
    inside = ("ip", "netns", "exec", "dstj-node-0", "ip6tables", "--wait")
    assert neighbours.answers([way]) == {way: False}
    kube.run(*inside, "-D", *rule)
    try:
        assert neighbours.answers([way]) == {way: True}, "open, whatever the policy says"
    finally:
        kube.run(*inside, "-A", *rule)
