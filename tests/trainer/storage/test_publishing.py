"""A file that only one of many may make: they are real processes, on file systems that can do less and less."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from deepseek_trainer.contract.errors import TryAgainError
from deepseek_trainer.storage import renaming
from deepseek_trainer.storage.durable import publish_file
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.keyring import KEYRING, Keyring
from support.builders.vault import JOB, KEK

MAKERS, ROUNDS = 6, 15
Made = tuple[int, object]


def refuse(number: int) -> Callable[..., None]:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.fixture(params=["links", "no links: EPERM", "no links: EOPNOTSUPP", "neither links nor RENAME_NOREPLACE"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind: str = request.param
    if kind != "links":
        monkeypatch.setattr(os, "link", refuse(errno.EPERM if "EPERM" in kind else errno.EOPNOTSUPP))
    if kind.startswith("neither"):
        monkeypatch.setattr(renaming, "_rename", refuse(errno.EINVAL))
    return kind


def race(make: Callable[[Path, int], object], directory: Path) -> dict[int, list[object]]:
    """What each of several processes got from `make(path, process)`, by round; all begin each round together."""
    fork = multiprocessing.get_context("fork")
    start, told = fork.Barrier(MAKERS), fork.Queue()
    makers = [fork.Process(target=run_rounds, args=(make, directory, each, start, told)) for each in range(MAKERS)]
    for maker in makers:
        maker.start()
    rounds: dict[int, list[object]] = {number: [] for number in range(ROUNDS)}
    for _ in range(MAKERS * ROUNDS):
        number, made = told.get(timeout=60)
        rounds[number].append(made)
    for maker in makers:
        maker.join()
    return rounds


def run_rounds(
    make: Callable[[Path, int], object], directory: Path, each: int, start: Barrier, told: "Queue[Made]"
) -> None:
    for number in range(ROUNDS):
        start.wait()
        told.put((number, make(directory / str(number) / KEYRING, each)))


def test_of_many_processes_exactly_one_publishes_and_all_find_its_content(tmp_path: Path, file_system: str) -> None:
    for number in range(ROUNDS):
        (tmp_path / str(number)).mkdir()

    def publish(path: Path, each: int) -> tuple[bool, int, str]:
        return publish_file(path, f"{each}".encode() * 5000), each, path.read_text()

    for number, made in race(publish, tmp_path).items():
        winners = [each for is_first, each, _ in made if is_first]  # type: ignore[misc, attr-defined]
        found = {content for _, _, content in made}  # type: ignore[misc, attr-defined]
        assert len(winners) == 1, file_system
        assert found == {f"{winners[0]}" * 5000}
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == [KEYRING]


def test_all_processes_seal_under_the_data_key_that_the_keyring_holds(tmp_path: Path, file_system: str) -> None:
    def sealing_key(path: Path, _: int) -> str:
        return JobKeys(path, JOB, [KEK]).to_seal().material.hex()

    for number, made in race(sealing_key, tmp_path).items():
        held = Keyring.open(tmp_path / str(number) / KEYRING, JOB, [KEK]).keys[0]
        assert set(made) == {held.material.hex()}, file_system


@pytest.mark.usefixtures("file_system")
def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        assert not publish_file(tmp_path / name, b"ours")
    assert (tmp_path / "file").read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_claim_that_a_crash_left_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_link", "_rename"):
        monkeypatch.setattr(renaming, name, refuse(errno.EINVAL))
    monkeypatch.setattr(renaming, "CLAIM_SECONDS", 0.05)
    (tmp_path / "file.partial-claim").touch()
    with pytest.raises(TryAgainError, match=r"file\.partial-claim has held up.*delete it"):
        publish_file(tmp_path / "file", b"x")
    (tmp_path / "file.partial-claim").unlink()
    assert publish_file(tmp_path / "file", b"x")


def test_a_disk_that_fails_is_not_taken_for_one_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EIO))
    with pytest.raises(TryAgainError, match="Input/output error"):
        publish_file(tmp_path / "file", b"x")
    assert not list(tmp_path.iterdir())
