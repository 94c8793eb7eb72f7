"""Decides where a job is, and leads to the cluster: the kubeconfig's current context, as for kubectl.

The Kubernetes client is imported only when a cluster is asked: that takes a second, and a laptop may have no cluster.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from deepseek_trainer.contract.errors import ConfigError
from dstj.local.home import Home

if TYPE_CHECKING:
    from dstj.remote.apiserver import ApiServer

T = TypeVar("T")

_EXTRA: Final = frozenset({"kubernetes", "aiohttp", "prometheus_client"})  # what [operator] installs and we import


def kubeconfig() -> str:
    """The paths of the kubeconfig's files, with ':' between them.  KUBECONFIG overrides the default."""
    return os.environ.get("KUBECONFIG") or "~/.kube/config"


def has_kubeconfig() -> bool:
    return any(Path(path).expanduser().is_file() for path in kubeconfig().split(os.pathsep) if path)


def is_remote(home: Home, name: str, namespace: str | None) -> bool:
    """Whether `name` means a job in the cluster: if a namespace is given, or no such job was run here."""
    return namespace is not None or (not home.has(name) and has_kubeconfig())


def ask(question: "Callable[[ApiServer], Awaitable[T]]", namespace: str | None) -> T:
    """Ask the cluster; returns its answer.  `namespace` defaults to the context's own.  Raises JobError."""
    if not has_kubeconfig():
        raise ConfigError(
            f"no kubeconfig at {kubeconfig()}",
            hint="KUBECONFIG names one; without a cluster, dstj run FILE runs a job on this machine",
        )
    try:
        from dstj.remote.apiserver import connected
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise ConfigError(
            f"the Kubernetes client is not installed: no module {error.name}",
            hint="pip install 'deepseek-training-operator[operator]'; without a cluster: dstj run FILE",
        ) from None

    async def answer() -> T:
        async with connected(kubeconfig(), namespace) as server:
            return await question(server)

    return asyncio.run(answer())
