"""Measures of each rank: how long it waits for data, how fast it computes, and how much memory it takes."""

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
    """The measures of all ranks since the last logged step, by rank."""

    waited: Sequence[float]  # waiting for data [s]
    alone: Sequence[float]  # computing before the wait for other ranks [s]; 0 where the ranks compute in step
    memory: Sequence[float]  # peak memory [bytes]

    @classmethod
    def of(cls, sums: Sequence[float]) -> Self:
        """From the sums over all ranks of what `Meter.contribution` gave."""
        size = len(sums) // 3
        return cls(sums[:size], sums[size : 2 * size], sums[2 * size :])

    @property
    def skew(self) -> float | None:
        """Time alone of the slowest rank over that of the median rank (of an even number, the lower of the two)."""
        middle = median_low(self.alone)
        return max(self.alone) / middle if len(self.alone) > 1 and middle else None

    @property
    def slowest(self) -> int | None:
        """The rank with the longest time alone; None where there is no skew."""
        return None if self.skew is None else self.alone.index(max(self.alone))


class Meter:
    """The measures of this rank, added up over steps until its contribution is taken.  Never waits for the device."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.monotonic) -> None:
        self._device, self._now = device, now
        self._waited = self._alone = 0.0
        self._began: Any = None
        self._ended: Any = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the block as a wait for data."""
        start = self._now()
        yield
        self._waited += self._now() - start

    def begin(self) -> None:
        """Mark where the device begins to compute."""
        self._began, self._ended = self._mark(), None

    def end(self) -> None:
        """Mark up to where it computed without waiting for another rank."""
        self._ended = self._mark()

    def add(self) -> None:
        """Add the time between the marks.  Call it after a wait for the device."""
        if self._ended is not None:
            self._alone += self._seconds(self._began, self._ended)

    def contribution(self, rank: int, size: int) -> list[float]:
        """Three numbers for each of `size` ranks, all zero except this rank's.  The sum over the ranks holds them all.

        Begins a new count.
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
    """Peak memory of this process [bytes]: allocated by torch on a GPU; on the CPU resident, with mapped files."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gpu_at_work(device: torch.device, precision: Precision) -> str | None:
    """The name of the GPU.  None on the CPU, and in FP32: `perf.GPUS` has no peak of tensor cores for that."""
    if device.type != "cuda" or compute_dtype(precision, device) is torch.float32:
        return None
    return torch.cuda.get_device_name(device)
