"""A worker job of this machine, of which a pod ends in a way that no status could express."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from deepseek_operator.concurrency import StrayError, within
from deepseek_trainer.contract.progress import Progress
from dstj.local import worker_job
from dstj.local.kubelet import index_of
from dstj.local.pod import LocalPod
from dstj.local.worker_job import LocalJob, Machine
from support.builders.operator import SPEC, a_worker_job


def a_manifest() -> dict[str, Any]:
    job = a_worker_job()
    template = {"metadata": {"labels": {}}, "spec": {"containers": [], "volumes": []}}
    job["spec"] |= {"completions": SPEC["trainer"]["numNodes"], "template": template}
    return job


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError("disk full"), OSError), (asyncio.CancelledError("who?"), StrayError)]
)
async def test_a_pod_that_cannot_run_stops_the_others_and_is_an_error(
    tmp_path, monkeypatch, error: BaseException, raised: type[Exception]
) -> None:
    async def run(pod: LocalPod) -> None:
        if index_of(pod.manifest) == 0:
            raise error
        while not pod.is_leaving:
            await asyncio.sleep(0)
        pod._end("Failed")

    monkeypatch.setattr(worker_job, "mount_all", lambda *_: None)
    monkeypatch.setattr(LocalPod, "run", run)
    home: Any = SimpleNamespace(directory=tmp_path, logs=tmp_path, scratch=tmp_path.joinpath)
    changed = asyncio.Event()
    job = LocalJob(a_manifest(), Machine(home, Any, 1), changed.set)

    async def ended() -> None:
        while not job.is_done:
            await asyncio.sleep(0)

    await within(5, ended())
    with pytest.raises(raised):
        _ = job.has_ended
    assert [index_of(pod) for pod in job.pods] == [0], "the other one was stopped, and has left"


@pytest.mark.parametrize(
    ("stages", "grace_s"),
    [((), 5), (("preparing", None), 5), (("training",), 150), (("evaluating", None, "preparing"), 150)],
)
async def test_only_pods_with_something_to_save_get_the_time_to_do_it(
    tmp_path, monkeypatch, stages: tuple[str | None, ...], grace_s: float
) -> None:
    async def run(_: LocalPod) -> None:
        """Ends at once."""

    monkeypatch.setattr(worker_job, "mount_all", lambda *_: None)
    monkeypatch.setattr(LocalPod, "run", run)
    manifest = a_manifest()
    manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 150
    home: Any = SimpleNamespace(directory=tmp_path, logs=tmp_path, scratch=tmp_path.joinpath)
    job = LocalJob(manifest, Machine(home, Any, 1), asyncio.Event().set)
    for stage in stages:
        job.heard(Progress(stage=stage) if stage else None)
    assert job.grace_s == grace_s
