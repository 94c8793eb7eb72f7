"""A pod that asked for accelerators or RDMA and did not get them ends at once, and says why and what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepseek_trainer.contract.errors import ConfigError, TryAgainError
from deepseek_trainer.contract.names import ENV_ACCELERATORS, ENV_FABRIC, ExitCode
from deepseek_trainer.worker.devices import MIN_LOCKED, Sight, require_devices

CUDA = "CUDA 12.8"


def asked(count: int, name: str = "nvidia.com/gpu") -> dict[str, str]:
    return {ENV_ACCELERATORS: f"{count} {name}"}


@pytest.fixture
def sees(monkeypatch: pytest.MonkeyPatch):
    """torch sees so many devices."""

    def see(count: int, build: str = CUDA, problem: str = "") -> None:
        monkeypatch.setattr(Sight, "now", classmethod(lambda _cls: Sight(build, count, problem)))

    return see


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_a_pod_without_the_gpus_that_it_asked_for_ends_before_it_reads_anything(tmp_path: Path) -> None:
    """No config, no volume: only the devices can have been looked at."""
    log = tmp_path / "termination-log"
    environment = os.environ | asked(8) | {"DSTJ_ROOT": str(tmp_path), "DSTJ_TERMINATION_LOG": str(log)}
    command = [sys.executable, "-m", "deepseek_trainer.prepare"]
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == ExitCode.CONFIG, ended.stderr
    assert "torch sees 0 of the 8 nvidia.com/gpu that the pod asked for: " in log.read_text()
    assert list(tmp_path.iterdir()) == [log]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_torch_says_in_its_own_words_why_it_sees_nothing() -> None:
    sight = Sight.now()
    assert sight.count == 0
    assert "driver" in sight.problem.lower() or "not compiled" in sight.problem


def test_where_nothing_was_asked_for_every_machine_will_do(sees) -> None:
    sees(0)
    require_devices(environ={})


@pytest.mark.parametrize("count", [8, 9])
def test_as_many_as_were_asked_for_are_enough(sees, count: int) -> None:
    sees(count)
    require_devices(environ=asked(8))


@pytest.mark.parametrize(
    ("count", "name", "build", "way_out"),
    [
        (0, "nvidia.com/gpu", CUDA, "set runtimeClassName in the TrainingProfile"),
        (1, "nvidia.com/gpu", CUDA, "update its driver to one for CUDA 12.8"),
        (1, "nvidia.com/mig-1g.10gb", CUDA, "CUDA shows one MIG device to a process: ask for 1 in each pod"),
        (0, "amd.com/gpu", CUDA, "the image has torch for CUDA 12.8: name one with torch for ROCm"),
        (0, "nvidia.com/gpu", "CPU", "the image has torch for CPU: name one with torch for CUDA"),
    ],
)
def test_fewer_are_refused_with_the_likely_cause(sees, count: int, name: str, build: str, way_out: str) -> None:
    sees(count, build, "No NVIDIA driver")
    with pytest.raises(ConfigError) as refused:
        require_devices(environ=asked(2, name))
    assert str(refused.value).startswith(f"torch sees {count} of the 2 {name} that the pod asked for: No NVIDIA driver")
    assert way_out in refused.value.hint


def test_a_device_that_goes_away_later_is_worth_another_try(sees) -> None:
    sees(7)
    with pytest.raises(TryAgainError, match="torch sees 7 of the 8"):
        require_devices(TryAgainError, asked(8))


def limited(soft: int, hard: int, enough: int) -> subprocess.CompletedProcess[str]:
    """A pod with RDMA whose processes may pin `hard` bytes, where `enough` do; it prints its limits in the end."""
    code = (
        f"import resource as r; r.setrlimit(r.RLIMIT_MEMLOCK, ({soft}, {hard}));"
        f"from deepseek_trainer.worker import devices; devices.MIN_LOCKED = {enough};"
        "devices.require_devices(); print(r.getrlimit(r.RLIMIT_MEMLOCK))"
    )
    command, environment = [sys.executable, "-c", code], os.environ | {ENV_FABRIC: "1"}
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)


def test_rdma_needs_more_memory_pinned_than_systemd_allows_by_default() -> None:
    ended = limited(4096, 8192, MIN_LOCKED)
    assert ended.returncode != 0
    assert "may pin 8192 bytes of memory (RLIMIT_MEMLOCK) (hint: set LimitMEMLOCK=infinity" in ended.stderr


def test_with_rdma_as_much_memory_is_pinned_as_allowed() -> None:
    assert limited(4096, 8192, 8192).stdout.strip() == "(8192, 8192)"
