"""`dstj logs` for a job in a cluster: prints what the containers of one pod wrote, as for a local job."""

import asyncio
import sys
from argparse import Namespace
from typing import Final

from deepseek_operator.jobs import labels
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from dstj.jobfile import Manifest
from dstj.remote.apiserver import ApiServer

POLL_S = 1.0
_AT_REST: Final = frozenset({"Succeeded", "Failed", "Suspended"})  # no pod will come


async def pod_logs(server: ApiServer, arguments: Namespace, containers: tuple[str, ...]) -> int:
    """Print the log of one pod, by default node 0's; with --follow, wait for the pod and until it ends."""
    pod, node = await _pod(server, arguments), arguments.node or 0
    shown = [container for container in containers if arguments.container in (None, container)]
    found = False
    for container in shown:
        if await _has_started(server, pod, container, follow=arguments.follow):
            found = True
            async for line in server.log(pod["metadata"]["name"], container, follow=arguments.follow):
                say(f"[{node} {container}] {line}")
                sys.stdout.flush()
    if not found:
        raise ConfigError(
            f"pod {pod['metadata']['name']}: no container has started ({', '.join(shown)})",
            hint=f"dstj status {arguments.name} -n {server.namespace} shows why; --follow waits for it",
        )
    return ExitCode.DONE


async def _pod(server: ApiServer, arguments: Namespace) -> Manifest:
    """The newest pod of the node that --node names."""
    while True:
        job = await server.job(arguments.name)
        status = job.get("status") or {}
        attempt = arguments.attempt or status.get("attempt") or 0
        selector = f"{labels.JOB_UID}={job['metadata']['uid']},{labels.ATTEMPT}={attempt}"
        pods = sorted(await server.pods(selector), key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
        node = str(arguments.node or 0)
        if of_node := [pod for pod in pods if _index(pod) == node]:
            return of_node[-1]
        if not arguments.follow or status.get("phase") in _AT_REST:
            raise _no_pod(server, arguments, attempt, pods)
        await asyncio.sleep(POLL_S)


def _index(pod: Manifest) -> str:
    return str(pod["metadata"].get("annotations", {}).get(labels.COMPLETION_INDEX, ""))


def _no_pod(server: ApiServer, arguments: Namespace, attempt: int, pods: list[Manifest]) -> ConfigError:
    nodes = ", ".join(sorted({_index(pod) for pod in pods}, key=lambda index: (len(index), index))) or "none"
    return ConfigError(
        f"job {server.namespace}/{arguments.name}: no pod of attempt {attempt}, node {arguments.node or 0}",
        hint=f"nodes of attempt {attempt} with a pod: {nodes}; dstj status {arguments.name} -n {server.namespace}",
    )


async def _has_started(server: ApiServer, pod: Manifest, container: str, *, follow: bool) -> bool:
    """Whether `container` has a log.  With `follow`, waits until it has one, or never will."""
    while not _started(pod, container):
        if not follow or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return False
        await asyncio.sleep(POLL_S)
        meta = pod["metadata"]
        selector = f"{labels.JOB_UID}={meta['labels'][labels.JOB_UID]}"
        again = [each for each in await server.pods(selector) if each["metadata"]["uid"] == meta["uid"]]
        if not again:
            return False
        pod = again[0]
    return True


def _started(pod: Manifest, container: str) -> bool:
    status = pod.get("status", {})
    states = (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
    return any(
        each["name"] == container and {"running", "terminated"} & each.get("state", {}).keys() for each in states
    )
