"""What the ranks measure of themselves: their waits for data, the pace of each, and the memory that they took."""

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median_low
from typing import Any, Self

import torch

from deepseek_trainer.contract.optimization import Precision
from deepseek_trainer.model.precision import compute_dtype


@dataclass(frozen=True, slots=True)
class Ranks:
    """What all ranks measured since the last logged step, by rank."""

    waited: Sequence[float]  # for data [s]
    alone: Sequence[float]  # computing before others are waited for [s]; 0: the ranks compute in step
    memory: Sequence[float]  # at its peak [bytes]

    @classmethod
    def of(cls, sums: Sequence[float]) -> Self:
        """From the sums over all ranks of what `Meter.contribution` gave."""
        size = len(sums) // 3
        return cls(sums[:size], sums[size : 2 * size], sums[2 * size :])

    @property
    def skew(self) -> float | None:
        """How many times as long as the median rank (of an even number the lower) the slowest computed alone."""
        middle = median_low(self.alone)
        return max(self.alone) / middle if len(self.alone) > 1 and middle else None

    @property
    def slowest(self) -> int | None:
        """The rank that computed longest alone; None where there is no skew."""
        return None if self.skew is None else self.alone.index(max(self.alone))


class Meter:
    """What this rank measures, added up over steps until its contribution is taken.  It never waits for the device."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.monotonic) -> None:
        self._device, self._now = device, now
        self._waited = self._alone = 0.0
        self._began: Any = None
        self._ended: Any = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for data."""
        start = self._now()
        yield
        self._waited += self._now() - start

    def begin(self) -> None:
        """The device computes from here on."""
        self._began, self._ended = self._mark(), None

    def end(self) -> None:
        """Up to here it computed without a wait for another rank."""
        self._ended = self._mark()

    def add(self) -> None:
        """Add what lay between; call it once the device was waited for."""
        if self._ended is not None:
            self._alone += self._seconds(self._began, self._ended)

    def contribution(self, rank: int, size: int) -> list[float]:
        """Three numbers for each of `size` ranks, zero for all but this one: summed over the ranks they are all known.

        The next count begins.
        """
        row = [0.0] * (3 * size)
        row[rank::size] = self._waited, self._alone, float(peak_memory(self._device))
        self._waited = self._alone = 0.0
        return row

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return self._now()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        return float(end - start if self._device.type != "cuda" else start.elapsed_time(end) / 1e3)


def peak_memory(device: torch.device) -> int:
    """[bytes] of this process so far: allocated by torch on a GPU; on the CPU resident, mapped files included."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gpu_at_work(device: torch.device, precision: Precision) -> str | None:
    """The name of the GPU; None on the CPU, and in FP32, for which its tensor cores have no peak in `perf.GPUS`."""
    if device.type != "cuda" or compute_dtype(precision, device) is torch.float32:
        return None
    return torch.cuda.get_device_name(device)
