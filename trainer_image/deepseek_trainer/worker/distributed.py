"""The ranks of one attempt: which one this process is, and what all of them agree on.

Whatever one rank could decide alone (stop, save now, not finite) goes through an all-reduce first, so that no rank acts
while another waits for it in a collective.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist

from deepseek_trainer.contract.errors import PeerGoneError, TryAgainError
from deepseek_trainer.contract.foreign import first_line
from deepseek_trainer.worker.devices import require_devices
from deepseek_trainer.worker.process import StopRequested

TIMEOUT = timedelta(minutes=30)  # a rank may seal a large checkpoint while the others wait


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among all ranks.  Its collectives use gloo on CPU tensors, whatever the device is."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # None: the default group

    @property
    def is_lead(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, as float64."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        return self.sum([float(flag)])[0] > 0

    def barrier(self) -> None:
        self.sum([0.0])

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, in rank order, on every rank.  It travels as JSON: no rank unpickles another's."""
        text = json.dumps(value)  # noqa: TID251  between us, where a loss may be NaN
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        sizes = [int(s) for s in self._all_gather(torch.tensor([len(data)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(data)] = data
        rows = self._all_gather(padded)
        return [json.loads(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def beside(self) -> Self:
        """The same ranks in another group, for another thread.  Collective."""
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        assert isinstance(group, dist.ProcessGroup), "all ranks are in it"
        return replace(self, group=group)

    def _all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        rows = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(rows, tensor, group=self.group)
        return rows


@contextmanager
def joined() -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, and leave it at the end or an agreed stop.

    A collective that fails because a peer died becomes a PeerGoneError: the state on the disk is good.  After a failure
    the group is not left, because that could wait for ever for a dead peer.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    require_devices(TryAgainError)  # they were there while the data were prepared; another machine may have them
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
        yield World(dist.get_rank(), dist.get_world_size(), device)
    except StopRequested:
        dist.destroy_process_group()
        raise
    except RuntimeError as error:  # DistBackendError and gloo's bare RuntimeError
        if _peer_is_gone(error):
            raise PeerGoneError(f"another rank went away: {first_line(error)}") from error
        raise
    dist.destroy_process_group()


def _peer_is_gone(error: RuntimeError) -> bool:
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Timed out", "gloo", "NCCL", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
