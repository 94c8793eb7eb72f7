"""Whether a pod got the devices that it asked for.  Without this check a GPU that torch cannot use means: the CPU."""

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from deepseek_trainer.contract.errors import ConfigError, JobError
from deepseek_trainer.contract.foreign import first_line
from deepseek_trainer.contract.names import ENV_ACCELERATORS, ENV_FABRIC

MIN_LOCKED: Final = 1 << 30  # [bytes] that RDMA may pin; systemd's default is 8 MiB


@dataclass(frozen=True, slots=True)
class Sight:
    """What torch sees of the accelerators of this machine."""

    build: str  # CUDA 12.8, ROCm 6.3 or CPU
    count: int
    problem: str  # why torch sees none, in its own words

    @classmethod
    def now(cls) -> Self:
        import torch  # noqa: PLC0415 seconds, and only where accelerators were asked for

        build = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        if torch.cuda.is_available():
            return cls(build, torch.cuda.device_count(), "")
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (AssertionError, RuntimeError) as error:
            return cls(build if torch.version.hip or torch.version.cuda else "CPU", 0, first_line(error))
        return cls(build, 0, "")


def require_devices(error: type[JobError] = ConfigError, environ: Mapping[str, str] = os.environ) -> None:
    """Raise `error` if torch sees fewer accelerators than the pod asked for, or ConfigError if RDMA cannot pin memory.

    Where nothing was asked for, as by `dstj run`, every machine will do.
    """
    if asked := environ.get(ENV_ACCELERATORS):
        _require_accelerators(asked, Sight.now(), error)
    if environ.get(ENV_FABRIC):
        _require_locked_memory()


def _require_accelerators(asked: str, sight: Sight, error: type[JobError]) -> None:
    count, _, name = asked.partition(" ")
    if sight.count < int(count):
        cause = f": {sight.problem}" if sight.problem else ""
        problem = f"torch sees {sight.count} of the {count} {name} that the pod asked for{cause}"
        raise error(problem, hint=_way_out(name, sight))


def _way_out(name: str, sight: Sight) -> str:
    vendor = "ROCm" if name.startswith("amd.com/") else "CUDA"
    if not sight.build.startswith(vendor):
        return f"the image has torch for {sight.build}: name one with torch for {vendor} in the TrainingProfile"
    if sight.count and "/mig-" in name:
        return "CUDA shows one MIG device to a process: ask for 1 in each pod, and for more numNodes"
    return (
        "set runtimeClassName in the TrainingProfile if the machine's default runtime mounts no driver (k3s, RKE2), or "
        f"update its driver to one for {sight.build}; see the device plugin's log"
    )


def _require_locked_memory() -> None:
    """Let this process and its children pin as much memory as they may.  Raises ConfigError if that is too little."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < MIN_LOCKED:
        raise ConfigError(
            f"the pod asked for RDMA and may pin {hard} bytes of memory (RLIMIT_MEMLOCK)",
            hint="set LimitMEMLOCK=infinity in the unit of the machine's container runtime, and restart it",
        )
