"""`dstj run`: runs a job on this machine, from where it stands to its end, or to Ctrl-C."""

import asyncio
import shlex
import signal
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

from deepseek_operator.controller.reconcile import reconcile
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.jobs.spec import VolumeRetention
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.lines import say
from deepseek_trainer.storage.durable import remove
from dstj.jobfile import Job, load_job
from dstj.local.claims import sources
from dstj.local.cluster import LocalCluster
from dstj.local.home import Home, JobHome
from dstj.local.kubelet import Manifest
from dstj.local.store import admitted, lengthened, stored
from dstj.screen.display import Display, display
from dstj.screen.outcome import is_finished, print_outcome

TICK_S = 1.0
WITH_WORKERS = ("Starting", "Running", "Suspending")
SETTINGS = Settings(
    progress_interval_s=TICK_S,
    resync_s=TICK_S,
    backoff_s=TICK_S,
    worker="worker",
    lost_fix="",
    resume_fix="the same command continues from the last checkpoint",
)
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}


def run(arguments: Namespace) -> int:
    """Run the job of a file to its end.  The same command goes on where the last one stopped."""
    job, home = load_job(Path(arguments.file)), Home.from_env()
    home.make()
    place = home.job(job.name)
    with place.locked():
        if arguments.recreate:
            recreate(place, job)
        old = stored(place)
        manifest = admitted(job, old)
        if longer := old and lengthened(job, old):
            say(f"{job.name}: going on from its last checkpoint, with {longer}")
        if is_finished(manifest):
            return print_outcome(manifest, place, hint=_how_to_recreate(manifest, arguments))
        return _run_on(manifest, job, home, arguments)


def _run_on(manifest: Manifest, job: Job, home: Home, arguments: Namespace) -> int:
    """Run the job from where it stands to its end, or to a signal."""
    place, found = home.job(job.name), sources(job, home, arguments.volume, arguments.vault_token)
    _refuse_lost_work(manifest, place, job)
    procs = job.spec.trainer.num_proc_per_node
    cluster = LocalCluster(manifest, place, found, procs_per_node=procs, profiles=job.profiles)
    stopped_by = _driven(cluster, plain=arguments.plain)
    if stopped_by is not None and not is_finished(manifest):
        say(f"{job.name}: suspended; to go on: {_command(arguments)}")
        return SIGNALS[stopped_by]
    return print_outcome(manifest, place)


def _how_to_recreate(manifest: Manifest, arguments: Namespace) -> str:
    again = f"{_command(arguments)} --recreate"
    if manifest["status"]["phase"] == "Succeeded":
        return (
            "more optimization.maxSteps or epochs in the file go on from there; "
            f"{again} trains it anew, with checkpoint.resumeFrom: None, or on from a step, with resumeFrom: STEP"
        )
    return f"{again} goes on from its checkpoint (with other settings: resumeFrom: STEP; resumeFrom: None starts over)"


def _command(arguments: Namespace) -> str:
    """The command that goes on with this run."""
    volumes = [word for volume in arguments.volume for word in ("--volume", volume)]
    token = ["--vault-token", arguments.vault_token] if arguments.vault_token else []
    return shlex.join(["dstj", "run", arguments.file, *volumes, *token])


def _driven(cluster: LocalCluster, *, plain: bool) -> signal.Signals | None:
    screen = display(plain=plain)
    try:
        return asyncio.run(drive(cluster, screen))
    finally:
        screen.close()


def recreate(place: JobHome, job: Job) -> None:
    """Do what deleting the job in a cluster does: its state and logs go, its work volume only if the job says so."""
    place.status_file.unlink(missing_ok=True)
    remove(place.logs, ignore_errors=True)
    volume = job.spec.checkpoint.volume
    if volume.claim_name is None and volume.when_deleted is VolumeRetention.DELETE:
        remove(place.paths.work, ignore_errors=True)


async def drive(cluster: LocalCluster, screen: Display) -> signal.Signals | None:
    """Make pass after pass until the job has ended or is suspended; returns the signal that stopped it, if any."""
    manifest = cluster.manifest
    stop = Stop(cluster, screen)
    cluster.recover()
    if manifest["status"].get("phase") in WITH_WORKERS:
        screen.note("the last run was killed: going on from its last checkpoint")
    try:
        while not _has_settled(manifest):
            look_again = await reconcile(JOBS, cluster.key, cluster, SETTINGS, datetime.now(UTC))
            screen.show(manifest)
            if not _has_settled(manifest):
                await cluster.wait(TICK_S if look_again is None else min(look_again, TICK_S))
    finally:
        await cluster.close()
    return stop.signal


def _refuse_lost_work(manifest: Manifest, place: JobHome, job: Job) -> None:
    """Refuse to run if the work directory is gone: a later attempt without checkpoints would start from nothing."""
    own = job.spec.checkpoint.volume.claim_name is None
    if own and manifest["status"].get("attempt") and not place.paths.work.is_dir():
        raise ConfigError(
            f"{place.paths.work}: is gone, and the checkpoints with it",
            hint=f"put it back, or start from nothing: dstj run {job.path} --recreate",
        )


class Stop:
    """Handles signals: the first one suspends the job, which then writes a checkpoint; a second one ends it at once."""

    def __init__(self, cluster: LocalCluster, screen: Display) -> None:
        self.signal: signal.Signals | None = None
        self._cluster, self._screen = cluster, screen
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._request, number)

    def _request(self, number: signal.Signals) -> None:
        if self.signal is None:
            self.signal = number
            doing = "writing a checkpoint" if self._cluster.has_trained else "stopping: nothing is trained yet"
            self._screen.note(f"{doing}; Ctrl-C again to stop at once")
            self._cluster.suspend()
        else:
            self._screen.note("stopping at once")
            self._cluster.kill()


def _has_settled(manifest: Manifest) -> bool:
    phase = manifest["status"].get("phase")
    return is_finished(manifest) or (phase == "Suspended" and bool(manifest["spec"].get("suspend")))
