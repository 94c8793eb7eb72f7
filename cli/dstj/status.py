"""`dstj status`: local jobs as a table, or one of them as the object that it is."""

import sys
from argparse import Namespace

from deepseek_trainer.contract.names import ExitCode
from dstj.home import Home, JobHome
from dstj.kubelet import Manifest
from dstj.outcome import summary
from dstj.store import stored, write_yaml
from dstj.table import lines
from dstj.view import view


def status(arguments: Namespace) -> int:
    """Print one job, or a line for each."""
    home = Home.from_env()
    names = [arguments.name] if arguments.name else home.jobs()
    jobs = [(place, manifest) for name in names if (manifest := stored(place := home.known_job(name)))]
    if arguments.output == "yaml":
        write_yaml((manifest for _, manifest in jobs), sys.stdout)
    elif arguments.name:
        _print_one(*jobs[0])
    elif jobs:
        for line in lines([HEAD, *(_row(place, manifest) for place, manifest in jobs)]):
            print(line)
    else:
        print(f"no jobs in {home.directory}; dstj run FILE makes one")
    return ExitCode.DONE


def _print_one(place: JobHome, manifest: Manifest) -> None:
    for line in summary(manifest, place):
        print(line)
    now = view(manifest)
    if now.progress:
        print(f"  progress      {now.progress}")
    if _is_orphaned(place, manifest):
        print("  its `dstj run` was killed: the same command goes on")
    print(f"  logs          dstj logs {place.directory.name}")


HEAD = ("NAME", "PHASE", "STEP", "LOSS", "ATTEMPT", "RESTARTS", "CHECKPOINT")


def _row(place: JobHome, manifest: Manifest) -> tuple[str, ...]:
    now = view(manifest)
    step = f"{now.step}/{now.max_steps}" if now.step is not None else "-"
    phase = f"{now.phase} (killed)" if _is_orphaned(place, manifest) else now.phase
    loss = now.metrics.get("loss", "-")
    return now.name, phase, step, loss, str(now.attempt), now.restarts, now.checkpoint or "-"


def _is_orphaned(place: JobHome, manifest: Manifest) -> bool:
    """Whether the status tells of processes that nobody watches any more."""
    return view(manifest).phase not in ("Succeeded", "Failed", "Suspended") and not place.is_locked
