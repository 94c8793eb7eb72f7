"""`python -m deepseek_operator` runs the operator in or against a cluster."""

import argparse
import asyncio
import gc
import os
import signal
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from deepseek_operator.controller import logs
from deepseek_operator.controller.service import Options, serve
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.settings import Settings

NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def parse(argv: Sequence[str] | None = None) -> tuple[Options, str]:
    """The options and the log level.  Exits with code 2 if they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m deepseek_operator", description=__doc__)
    scope = parser.add_mutually_exclusive_group(required=True)
    scope.add_argument("--namespace", action="append", default=[], help="serve this namespace; may be repeated")
    scope.add_argument("--all-namespaces", action="store_true", help="serve the whole cluster")
    parser.add_argument("--leader-elect", action="store_true", help="wait for a Lease; for more than one replica")
    parser.add_argument("--operator-namespace", default=_own_namespace(), help="where the Lease is (default: its own)")
    parser.add_argument("--dns-namespace", default=Settings().dns_namespace, help="namespace of the cluster's DNS pods")
    parser.add_argument("--dns-port", type=int, action="append", default=[], help="port of theirs; may be repeated")
    parser.add_argument(
        "--placement-wait",
        type=float,
        default=Settings().placement_wait_s,
        metavar="SECONDS",
        help="pods give machines back after so long if others of their job find none (default: 300)",
    )
    parser.add_argument("--port", type=int, default=8080, help="port of /metrics and /healthz (default: 8080)")
    parser.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")
    args = parser.parse_args(argv)
    settings = Settings(
        operator_namespace=args.operator_namespace,
        dns_namespace=args.dns_namespace,
        dns_ports=tuple(args.dns_port) or Settings().dns_ports,
        placement_wait_s=args.placement_wait,
    )
    identity = f"{socket.gethostname()}_{uuid.uuid4()}"
    return Options(tuple(args.namespace), args.leader_elect, identity, args.port, settings), args.log_level


def _own_namespace() -> str:
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else Settings().operator_namespace


async def run(options: Options) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    configuration = Configuration()
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(client_configuration=configuration)
    async with ApiClient(configuration) as client:
        await serve(JOBS, options, client, stop)


def main() -> None:
    options, level = parse()
    logs.configure(level)
    gc.freeze()  # modules never become garbage
    gc.set_threshold(50_000, 10, 10)  # manifests hold no cycles, and looking for some took a quarter of a start
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
