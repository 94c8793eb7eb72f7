"""Listeners and clients where there is only IPv6, only IPv4, or both: real sockets in network namespaces."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.builders.worker import variables, write_config

HOST = "job-a1-{}.dstj-job"  # of a pod, as the operator names it
ADDRESSES = {"IPv4": ("10.9.0.1", "10.9.0.2"), "IPv6": ("fd00::1", "fd00::2")}
STACKS = {"IPv6 only": ("IPv6",), "IPv4 only": ("IPv4",), "both": ("IPv4", "IPv6")}
WITHOUT = {
    "IPv4": "ip addr del 127.0.0.1/8 dev lo",
    "IPv6": "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; ! ip -6 addr show | grep inet6",
}

# Reads, as the operator does, what rank 0 and the operator serve.
PAGES = """
import asyncio, json, sys
import aiohttp
from deepseek_operator.controller.health import Health
from deepseek_operator.controller.pages import read_page
from deepseek_operator.controller.service import _probes
from deepseek_trainer.telemetry.progress import Progress, serve

async def main(addresses):
    progress = Progress()
    progress.update(step=7)
    serve(progress, "job-a1-0.dstj-job", 9400)
    async with aiohttp.ClientSession() as session, _probes(Health(lambda: 0.0, lambda: 0.0, 60.0), 8080):
        for address in addresses:
            assert json.loads(await read_page(session, address, 9400, "/progress"))["step"] == 7, address
            assert b"dstj_trainer_step 7.0" in await read_page(session, address, 9400, "/metrics"), address
            assert await read_page(session, address, 8080, "/healthz") == b"ok", address
            assert b"dstj_" in await read_page(session, address, 8080, "/metrics"), address

asyncio.run(main(sys.argv[1:]))
"""

# Two agents in a namespace; their ranks sum over gloo.
SUMS = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
sum = torch.ones(1)
dist.all_reduce(sum)
open(os.environ["DSTJ_ROOT"] + "/sum-" + os.environ["RANK"], "w").write(str(int(sum)))
dist.destroy_process_group()
"""
AGENTS = """
import os, subprocess, sys
from support.builders.worker import agent_with
agents = []
for index in "01":
    own = {"JOB_COMPLETION_INDEX": index, "DSTJ_SCRATCH": os.environ["DSTJ_SCRATCH"] + index}
    agents.append(subprocess.Popen(agent_with(sys.argv[1]), env=os.environ | own))
sys.exit(max(agent.wait() for agent in agents))
"""


def inside(stack: str, hosts: Path, *command: str) -> tuple[str, ...]:
    """`command` where there is only `stack`, and pods' names lead to its addresses."""
    families = STACKS[stack]
    pairs = [(address, i) for family in families for i, address in enumerate(ADDRESSES[family])]
    names = [f"{address} {HOST.format(i)}" for address, i in pairs]
    names += [f"{ADDRESSES[family][0]} {socket.gethostname()} localhost" for family in families]
    hosts.write_text("\n".join(names) + "\n")
    setup = ["set -e", "ip link set lo up", f"mount --bind {hosts} /etc/hosts"]
    setup += [f"ip addr add {address} dev lo" for address, _ in pairs]
    setup += [without for family, without in WITHOUT.items() if family not in families]
    script = "\n".join([*setup, 'exec "$@"'])
    return ("unshare", "--net", "--mount", "sh", "-c", script, "sh", *command)


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    hosts = tmp_path / "hosts"
    if subprocess.run(inside("IPv6 only", hosts, "true"), capture_output=True, check=False).returncode:
        pytest.skip("this kernel lets nobody make such a network")
    return hosts


@pytest.mark.parametrize("stack", STACKS)
def test_pages_of_rank_0_and_of_the_operator_are_served_and_read(hosts: Path, stack: str):
    addresses = [ADDRESSES[family][0] for family in STACKS[stack]]
    done = subprocess.run(
        inside(stack, hosts, sys.executable, "-c", PAGES, *addresses), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stack", STACKS)
def test_nodes_meet_and_their_ranks_sum(hosts: Path, stack: str, tmp_path: Path):
    write_config(tmp_path, nodes=2)
    environ = {name: value for name, value in variables(tmp_path).items() if name != "DSTJ_NODE_ADDRESS"}
    port = environ["DSTJ_RENDEZVOUS"].rpartition(":")[2]
    here = {"DSTJ_RENDEZVOUS": f"{HOST.format(0)}:{port}"}
    support = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        inside(stack, hosts, sys.executable, "-c", AGENTS, SUMS),
        env=os.environ | environ | here | support,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"sum-{rank}").read_text() for rank in range(2)] == ["2", "2"]
