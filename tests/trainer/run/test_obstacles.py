"""What others can put in the place of a file that a run opens: none hangs it, leads it out of its volume or is read."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, list_checkpoints, verify
from deepseek_trainer.checkpoints.manifest import Manifest
from deepseek_trainer.contract.errors import ConfigError, DataError, IntegrityError, JobError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.sources import Source
from deepseek_trainer.storage.access import refuse_unwritable
from deepseek_trainer.tasks import preparer
from deepseek_trainer.telemetry.events import EventLog
from deepseek_trainer.worker.training_config import load_config
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import (
    RUN,
    RUN_ID,
    a_config,
    open_prepared,
    prepare,
    put_key,
    questions,
    some_paths,
    write_jsonl,
    write_text,
)
from support.builders.images import an_image_job
from support.builders.vault import a_state, a_store, a_vault

Obstacle = Callable[[Path], object]
PATIENCE_S = 5
SEALING = pytest.mark.parametrize("seal", [True, False], ids=["sealed", "clear"])


def a_fifo(place: Path) -> None:
    os.mkfifo(place)


def a_device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def a_link_out(place: Path) -> None:
    place.symlink_to("/etc/hostname")


def a_directory(place: Path) -> None:
    place.mkdir()


def a_sparse_file(place: Path, size: int) -> None:
    place.touch()
    os.truncate(place, size)


OBSTACLES = pytest.mark.parametrize("obstacle", [a_fifo, a_device, a_link_out, a_directory])


@contextmanager
def in_time() -> Iterator[None]:
    """A hang fails the test, though it is in a call of the kernel."""

    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def in_place_of(file: Path, obstacle: Obstacle) -> Iterator[None]:
    kept = file.with_name(f"kept-{file.name}")
    file.rename(kept)
    obstacle(file)
    yield
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink()
    kept.rename(file)


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


@OBSTACLES
@SEALING
def test_prepared_data(tmp_path: Path, obstacle: Obstacle, seal: bool) -> None:
    paths = some_paths(tmp_path)
    put_key(paths)
    write_jsonl(paths, "a.jsonl", questions(20))
    config = a_config(seal=seal, format="Instruction", curriculum={"by": "Length"})
    vault = data_vault(config, paths)
    prepare(config, paths, vault, RUN_ID)
    files = files_below(paths.prepared)
    assert {"manifest", "pointer", "train-00000", "train", "prompts", "tokenizer"} <= {
        f.name.split(".")[0] for f in files
    }
    for file in files:
        with in_place_of(file, obstacle), in_time(), pytest.raises(JobError):
            open_prepared(config, paths, vault, RUN)
    open_prepared(config, paths, vault, RUN)


@OBSTACLES
@SEALING
def test_checkpoints(tmp_path: Path, obstacle: Obstacle, seal: bool) -> None:
    store = a_store(tmp_path, sealed=seal)
    store.save(1, a_state(1), {})
    files = files_below(store.directory)
    assert len(files) == 3
    for file in files:
        with in_place_of(file, obstacle), in_time(), pytest.raises(JobError):
            _load(tmp_path, seal)
    assert _load(tmp_path, seal).step == 1


def _load(work: Path, seal: bool) -> CheckpointInfo:
    """The checkpoint, every byte of it read."""
    vault = a_vault(work, sealed=seal)
    (found,) = list_checkpoints(work / "checkpoints", vault)
    if not isinstance(found, CheckpointInfo):
        raise DataError(found.reason)
    verify(found, vault)
    return found


@SEALING
@pytest.mark.parametrize("name", ["prepared", "checkpoints", "export", "logs"])
def test_a_directory_of_the_work_volume_that_leads_out_of_it(tmp_path: Path, name: str, seal: bool) -> None:
    paths = Paths(tmp_path / "root")
    paths.work.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    getattr(paths, name).symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match=f"{name} is a link"):
        refuse_unwritable(paths)


@pytest.mark.parametrize("obstacle", [a_fifo, a_device, a_link_out])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt", ".png"])
@pytest.mark.parametrize("is_named", [True, False], ids=["named", "found"])
def test_data(tmp_path: Path, obstacle: Obstacle, suffix: str, is_named: bool) -> None:
    paths, name = some_paths(tmp_path), f"train/x{suffix}"
    obstacle(write_text(paths, name, "").parent / f"y{suffix}")
    config = an_image_job() if suffix == ".png" else a_config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation_fraction": 0.5})})
    place = config.data.training_places[""].model_copy(update={"path": f"train/y{suffix}" if is_named else "train"})
    with in_time(), pytest.raises(DataError):
        [*Source.find(place, config.data, paths, preparer(config).reading(config.data)).records()]
    if obstacle is a_fifo:
        with in_time(), pytest.raises(DataError, match="is a FIFO"):
            Source.find(place, config.data, paths, preparer(config).reading(config.data)).digest()


@pytest.mark.parametrize("obstacle", [a_fifo, a_device, a_directory])
def test_the_config(tmp_path: Path, obstacle: Obstacle) -> None:
    obstacle(tmp_path / "config.json")
    with in_time(), pytest.raises(ConfigError, match="put a regular file in its place"):
        load_config(tmp_path / "config.json")


@pytest.mark.parametrize("obstacle", [a_fifo, a_device, a_link_out])
def test_the_log_of_events(tmp_path: Path, obstacle: Obstacle) -> None:
    obstacle(tmp_path / "events.jsonl")
    with in_time(), pytest.raises(ConfigError):
        EventLog(tmp_path / "events.jsonl")


@pytest.mark.parametrize("size", [1 << 40, (256 << 20) + 1])
def test_a_file_without_end_in_the_place_of_a_document_takes_no_memory(tmp_path: Path, size: int) -> None:
    store = a_store(tmp_path, sealed=False)
    store.save(1, a_state(1), {})
    for file in (store.directory / "HEAD.json", store.directory / "step-00000001/manifest.json"):
        sparse = partial(a_sparse_file, size=size)
        with in_place_of(file, sparse), in_time(), pytest.raises(JobError, match="at most 268,435,456 are read"):
            _load(tmp_path, seal=False)


@pytest.mark.parametrize("content", [b"[" * 1_000_000, b"[]", b"null", b'{"format": []}', b"\xff", b""])
def test_a_document_of_somebody_else_is_refused(tmp_path: Path, content: bytes) -> None:
    store = a_store(tmp_path, sealed=False)
    store.save(1, a_state(1), {})
    for file in (store.directory / "HEAD.json", store.directory / "step-00000001/manifest.json"):
        with in_place_of(file, lambda place: place.write_bytes(content)), in_time(), pytest.raises(JobError):
            _load(tmp_path, seal=False)


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "a/b", "..", ""])
def test_a_checkpoint_in_the_clear_names_no_file_outside_of_its_directory(tmp_path: Path, name: str) -> None:
    store = a_store(tmp_path, sealed=False)
    store.save(1, a_state(1), {})
    manifest = store.directory / "step-00000001/manifest.json"
    content = json.loads(manifest.read_bytes())
    content["files"][0]["name"] = name
    with pytest.raises(IntegrityError, match="not a manifest"):
        Manifest.from_json(json.dumps(content).encode())
