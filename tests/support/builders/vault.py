"""The smallest valid keys, vaults and checkpoint stores; tests name only what they are about."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.keyring import KEYRING
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.vault import Purpose, Vault

JOB = "lab/demo"
KEK = Key(bytes(range(32)))
OTHER_KEK = Key(bytes(range(1, 33)))


def a_key_file(path: Path, content: bytes = KEK.material, mode: int = 0o600) -> Path:
    """A key-encryption key as its owner keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def a_vault(
    work: Path, *, purpose: Purpose = Purpose.CHECKPOINT, job: str = JOB, kek: Key = KEK, sealed: bool = True
) -> Vault:
    """A vault whose keyring lies in `work`."""
    return Vault(job, purpose, JobKeys(work / KEYRING, job, [kek]) if sealed else None)


def a_store(work: Path, *, sealed: bool = True, **changes: Any) -> CheckpointStore:
    return CheckpointStore(work / "checkpoints", a_vault(work, sealed=sealed), **changes)


def a_state(step: int = 0, floats: int = 4) -> dict[str, Any]:
    """What one rank saves; another one at each step."""
    return {
        "model": {"layers.0.weight": torch.full((floats,), float(step))},
        "rng": {"cpu": torch.arange(3, dtype=torch.uint8)},
    }


def weights_of(state: dict[str, Any]) -> float:
    return float(state["model"]["layers.0.weight"][0])


def latest_weights(store: CheckpointStore) -> float:
    """The weights of the newest whole checkpoint."""
    info = store.latest()
    assert info is not None
    return weights_of(store.load(info)[0])


class Ranks:
    """Several ranks as threads, and their exchange of JSON values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=10)
        self._values: list[Any] = [None] * size

    def exchange_of(self, rank: int) -> Callable[[Any], list[Any]]:
        def exchange(value: Any) -> list[Any]:
            self._values[rank] = value
            self._barrier.wait()
            values = list(self._values)
            self._barrier.wait()
            return values

        return exchange

    def run(self, work: Callable[[int, Callable[[Any], list[Any]]], Any]) -> Sequence[Any]:
        """`work(rank, exchange)` on all ranks; what each gave, or the exception that it raised."""

        def caught(rank: int) -> Any:
            try:
                return work(rank, self.exchange_of(rank))
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(caught, range(self.size)))
