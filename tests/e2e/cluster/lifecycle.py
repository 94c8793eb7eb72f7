"""The cluster as a whole: up, down, a node lost and found."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import addons
import api
import build
import control
import images
import machines
import worker
from layout import CONTROL, GPUS_PER_NODE, KUBECONFIG, NODES, PROGRAMS, STATE, Node
from pki import make_certificates
from shell import ClusterError, run, say, succeeds, wait_until


def up() -> None:
    """Start what is not running, or runs otherwise than it should; returns when pods can be scheduled on both nodes."""
    began = time.monotonic()
    build.install_packages()
    programs = build.programs()
    STATE.mkdir(parents=True, exist_ok=True)
    PROGRAMS.unlink(missing_ok=True)
    PROGRAMS.symlink_to(programs)
    make_certificates()
    plan = control.plan(programs)
    if not machines.runs(CONTROL, plan):
        for node in NODES:
            machines.power_off(node)  # it hangs on the old control machine's bridge
        machines.power_on(CONTROL, plan)
    with ended_components_shown():
        for node in NODES:
            start_node(node)
        await_api_server()
        apply_addons(programs)
        for node in NODES:
            await_node(node)
    say(f"ready after {time.monotonic() - began:.1f} s: export KUBECONFIG={KUBECONFIG}")


def start_node(node: Node) -> None:
    """Switch a node on; the images that it once had are still on its disk."""
    programs = build.programs()
    plan = worker.plan(node, programs)
    if machines.runs(node, plan):
        return
    machines.power_on(node, plan)
    images.await_containerd(node)
    if worker.PAUSE_IMAGE not in images.digests(node):
        images.import_archive(node, (programs / "pause.tar").read_bytes())


def down(purge: bool) -> None:
    """Switch all machines off.  With `purge` the state goes too; programs and built images stay cached."""
    for machine in (*NODES, CONTROL):
        machines.power_off(machine)
    worker.remove_mount_points()
    if purge and STATE.exists():
        shutil.rmtree(STATE)


def kubectl(*arguments: str, **options: object) -> str:
    return run(build.programs() / "kubectl", f"--kubeconfig={KUBECONFIG}", *arguments, **options)


def await_api_server() -> None:
    wait_until("the API server is ready", lambda: api.get("/readyz") == "ok", 90)
    # Namespaces and their accounts are made a moment after the API server is ready.
    wait_until("namespace kube-system", lambda: api.get("/api/v1/namespaces/kube-system") is not None, 30)
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    wait_until("service accounts", lambda: api.get(account) is not None, 30)


def apply_addons(programs: Path) -> None:
    """Forced, because an object that somebody has edited must not keep the cluster from starting."""
    wanted = json.dumps(addons.addons(programs, worker.PAUSE_IMAGE))
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=wanted)
    # Of a cluster that was made when names were served by the control machine.
    api.request("DELETE", f"/apis/discovery.k8s.io/v1/namespaces/{addons.SYSTEM}/endpointslices/kube-dns")


def await_node(node: Node) -> None:
    """Ready since this start of the machine: after a restart the old condition stands for a while."""
    booted = int(machines.pid_file(node).stat().st_mtime)
    wait_until(f"{node.name} is ready with its GPUs", lambda: is_ready(node, booted), 90)
    firewall = machines.command_in(node, "iptables", "--wait", "--list-rules", "KUBE-ROUTER-FORWARD")
    wait_until(f"the firewall of {node.name} is up", lambda: succeeds(*firewall), 60)
    wait_until(f"{node.name} serves names", lambda: serves_names(node), 60)
    wait_until(f"{node.name} takes pods", lambda: takes_pods(node), 60)


def takes_pods(node: Node) -> bool:
    """Not before its taints are gone: those of a machine that was off stay for a moment."""
    found = api.get(f"/api/v1/nodes/{node.name}")
    return found is not None and not found["spec"].get("taints")


def serves_names(node: Node) -> bool:
    where = f"labelSelector=k8s-app%3Dkube-dns&fieldSelector=spec.nodeName%3D{node.name}"
    found = api.get(f"/api/v1/namespaces/{addons.SYSTEM}/pods?{where}") or {"items": []}
    addresses = [pod["status"]["podIP"] for pod in found["items"] if pod["status"].get("podIP")]
    return any(listens(address, 53) for address in addresses)


def listens(address: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((address, port)) == 0


def is_ready(node: Node, since: float = 0) -> bool:
    """Whether the node has said so after `since` (seconds of the Unix epoch)."""
    found = api.get(f"/api/v1/nodes/{node.name}")
    seen = found and api.ready_since(found)
    if not seen or found["status"]["allocatable"].get("nvidia.com/gpu") != str(GPUS_PER_NODE):
        return False
    return datetime.fromisoformat(seen).timestamp() >= since


@contextmanager
def ended_components_shown() -> Iterator[None]:
    """Where the start fails, the last words of every component that ended on the way."""
    try:
        yield
    except ClusterError:
        for log in sorted(STATE.glob("logs/*/*.log")):
            tail = log.read_text(errors="replace")[-4000:]
            if " ended with status " in tail:
                say(f"{log}:\n" + "\n".join(tail.splitlines()[-12:]))
        raise


def logs_of(component: str) -> list[Path]:
    """Every machine's log of a component; `audit` is the API server's audit log."""
    found = sorted(STATE.glob(f"logs/*/{component}.log"))
    if not found:
        known = sorted({path.stem for path in STATE.glob("logs/*/*.log")})
        raise ClusterError(f"no log of {component!r}: give one of {', '.join(known) or 'none yet: cluster.py up'}")
    return found
