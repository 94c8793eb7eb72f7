"""`dstj status`: prints jobs as a table, or one of them as the object that it is."""

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from deepseek_operator.jobs.blueprint import child_name
from deepseek_operator.objects.observed import Owner
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode, Paths
from dstj.local.home import Home, JobHome
from dstj.local.kubelet import Manifest
from dstj.local.store import stored, write_yaml
from dstj.remote.context import ask, is_remote
from dstj.screen.outcome import summary
from dstj.screen.table import lines
from dstj.screen.view import checkpoint, restarts, view

if TYPE_CHECKING:
    from dstj.remote.apiserver import ApiServer


def status(arguments: Namespace) -> int:
    """Print one job, or a line for each."""
    home = Home.from_env()
    if arguments.namespace or (arguments.name and is_remote(home, arguments.name, arguments.namespace)):
        return ask(lambda server: _of_cluster(server, arguments), arguments.namespace)
    return _local(home, arguments)


def _local(home: Home, arguments: Namespace) -> int:
    names = [arguments.name] if arguments.name else home.jobs()
    jobs = [(place, manifest) for name in names if (manifest := stored(place := home.known_job(name)))]
    if arguments.output == "yaml":
        write_yaml((manifest for _, manifest in jobs), sys.stdout)
    elif arguments.name:
        _print_one(*jobs[0])
    elif jobs:
        _print_table(_row(manifest, is_orphan=_is_orphaned(place, manifest)) for place, manifest in jobs)
    else:
        say(f"no jobs in {home.directory}; dstj run FILE makes one; dstj status -n NAMESPACE lists a cluster's")
    return ExitCode.DONE


async def _of_cluster(server: "ApiServer", arguments: Namespace) -> int:
    jobs = [await server.job(arguments.name)] if arguments.name else list(await server.jobs())
    for manifest in jobs:
        manifest["metadata"].pop("managedFields", None)
    if arguments.output == "yaml":
        write_yaml(jobs, sys.stdout)
    elif arguments.name:
        for line in _remote_summary(jobs[0]):
            say(line)
    elif jobs:
        _print_table(_row(manifest) for manifest in sorted(jobs, key=lambda job: str(job["metadata"]["name"])))
    else:
        say(f"no jobs in namespace {server.namespace} ({server.target.context}); dstj submit FILE makes one")
    return ExitCode.DONE


def _remote_summary(manifest: Manifest) -> Iterator[str]:
    """The lines of `summary` for a job in a cluster, with claims in place of directories."""
    meta, status, now = manifest["metadata"], manifest.get("status") or {}, view(manifest)
    yield f"{meta['name']}: {now.phase}: {now.message}" if now.message else f"{meta['name']}: {now.phase}"
    volume = manifest["spec"].get("checkpoint", {}).get("volume", {})
    claim = volume.get("claimName") or child_name(Owner(meta["namespace"], meta["name"], meta["uid"]))
    work = Paths().work
    if now.phase == "Succeeded":
        yield f"  result        claim {claim}, {(Paths().export / meta['name']).relative_to(work)}"
    if now.progress:
        yield f"  progress      {now.progress}"
    yield from (f"  notice        {text}" for text in now.notices)
    if last := checkpoint(status.get("lastCheckpoint")):
        yield f"  checkpoint    {last}, in claim {claim}, {Paths().checkpoints.relative_to(work)}"
    yield f"  attempts      {now.attempt}, restarts: {restarts(status.get('restarts') or {})}"
    yield f"  logs          dstj logs {meta['name']} -n {meta['namespace']}"


def _print_one(place: JobHome, manifest: Manifest) -> None:
    for line in summary(manifest, place):
        say(line)
    now = view(manifest)
    if now.progress:
        say(f"  progress      {now.progress}")
    if _is_orphaned(place, manifest):
        say("  its `dstj run` was killed: the same command goes on")
    say(f"  logs          dstj logs {place.directory.name}")


HEAD = ("NAME", "PHASE", "STEP", "LOSS", "ATTEMPT", "RESTARTS", "CHECKPOINT")


def _print_table(rows: Iterable[tuple[str, ...]]) -> None:
    for line in lines([HEAD, *rows]):
        say(line)


def _row(manifest: Manifest, *, is_orphan: bool = False) -> tuple[str, ...]:
    now = view(manifest)
    step = f"{now.step}/{now.max_steps}" if now.step is not None else "-"
    phase = f"{now.phase} (killed)" if is_orphan else now.phase
    loss = now.metrics.get("loss", "-")
    return now.name, phase, step, loss, str(now.attempt), now.restarts, now.checkpoint or "-"


def _is_orphaned(place: JobHome, manifest: Manifest) -> bool:
    """Whether the status names a running job whose `dstj run` is gone."""
    return view(manifest).phase not in ("Succeeded", "Failed", "Suspended") and not place.is_locked
