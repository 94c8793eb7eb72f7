"""Directories that are nested deeper than Python's stack, or than a path may be long."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.sources import Source
from deepseek_trainer.storage.commit import committed, remove_leftovers
from deepseek_trainer.storage.durable import remove
from deepseek_trainer.storage.trees import entries_in, files_in
from deepseek_trainer.tasks.language.reading import reading
from support.builders.model import a_config

DEPTH = 1500
TOO_LONG = 5000  # of two characters each: a path has at most 4096


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory, where thousands of others are quickly made.  pytest itself could not remove it."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield made
    remove(made)


def nested(root: Path, depth: int) -> Path:
    """A directory with a file at the bottom of `depth` others."""
    before = Path.cwd()
    root.mkdir(parents=True)
    try:
        os.chdir(root)
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Path("bottom.txt").write_text("the pump runs")
    finally:
        os.chdir(before)
    return root


@pytest.mark.parametrize("depth", [0, 1, DEPTH, TOO_LONG])
def test_a_directory_of_any_depth_is_removed(place: Path, depth: int) -> None:
    remove(nested(place / "deep", depth))
    assert not (place / "deep").exists()


def test_of_links_only_the_link_is_removed(place: Path) -> None:
    kept = nested(place / "kept", 2)
    tree = nested(place / "tree", 1)
    (tree / "link").symlink_to(kept)
    (tree / "d" / "loop").symlink_to(tree)
    (tree / "d" / "file").symlink_to(kept / "d/d/bottom.txt")
    remove(tree)
    assert not tree.exists()
    assert (kept / "d/d/bottom.txt").read_text() == "the pump runs"


def test_what_is_not_there_is_removed_already(place: Path) -> None:
    remove(place / "nothing")


def test_what_may_not_be_removed_is_told_unless_errors_are_ignored(place: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no")

    tree = nested(place / "tree", 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        with pytest.raises(PermissionError):
            remove(tree)
        remove(tree, ignore_errors=True)
    assert tree.exists()


def test_files_of_any_depth_are_found(place: Path) -> None:
    tree = nested(place / "deep", DEPTH)
    (tree / "a.txt").write_text("a")
    assert [path.name for path in files_in(tree)] == ["a.txt", "bottom.txt"]
    assert sum(1 for _ in entries_in(tree)) == DEPTH + 2


def test_leftovers_of_any_depth_are_removed(place: Path) -> None:
    nested(place / "step-00000001.partial-1-x", DEPTH)
    assert remove_leftovers(place)
    assert not list(place.iterdir())


def test_a_directory_of_any_depth_is_committed(place: Path) -> None:
    with committed(place / "made") as partial:
        nested(partial / "deep", DEPTH)
    assert [path.name for path in files_in(place / "made")] == ["bottom.txt"]


def test_data_of_any_depth_are_read(place: Path) -> None:
    paths = Paths(place)
    nested(paths.claim("data"), DEPTH)
    spec = a_config(data={"train": {"claimName": "data"}, "format": "Text"}).data
    source = Source.find(spec.train, spec, paths, reading(spec))
    assert [record.text for record in source.records()] == ["the pump runs"]
