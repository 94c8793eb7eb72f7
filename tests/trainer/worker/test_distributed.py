"""One rank in a process group of its own, left in every way."""

import socket
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from deepseek_trainer.contract.errors import PeerGoneError
from deepseek_trainer.worker.distributed import joined
from deepseek_trainer.worker.process import StopRequested


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_a_rank_that_is_done_leaves_the_group():
    with joined() as world:
        assert (world.rank, world.size, world.is_lead) == (0, 1, True)
        assert world.sum([1.5, 2.0]) == [1.5, 2.0]
        assert world.gather({"a": 1}) == [{"a": 1}]
    assert not dist.is_initialized()


def test_a_rank_that_stops_with_all_others_leaves_the_group():
    with pytest.raises(StopRequested), joined():
        raise StopRequested
    assert not dist.is_initialized()


@pytest.mark.parametrize("text", ["Connection reset by peer", "NCCL error\nremote process exited", "Timed out waiting"])
def test_a_collective_that_lost_a_peer_does_not_wait_for_it_again(text: str):
    with pytest.raises(PeerGoneError, match=r"another rank went away: (Connection|NCCL error$|Timed)"), joined():
        raise RuntimeError(text)
    assert dist.is_initialized()


def test_an_error_of_the_group_without_text_is_a_lost_peer():
    with pytest.raises(PeerGoneError), joined():
        raise dist.DistBackendError


def test_an_error_of_the_model_is_not_put_down_to_a_peer():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), joined():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
