"""Directories that are nested deeper than Python's stack, or than a path may be long."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.sources import Source
from deepseek_trainer.storage.commit import committed, remove_leftovers
from deepseek_trainer.storage.durable import remove
from deepseek_trainer.storage.trees import entries_in, files_in
from deepseek_trainer.tasks.language.records import reading
from support.builders.model import a_config

DEPTH = 1500
TOO_LONG = 5000  # of two characters each: a path has at most 4096


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """pytest itself could not remove what these tests make."""
    yield
    for path in tmp_path.iterdir():
        remove(path)


def nested(place: Path, depth: int) -> Path:
    """A directory with a file at the bottom of `depth` others."""
    before = Path.cwd()
    place.mkdir(parents=True)
    try:
        os.chdir(place)
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Path("bottom.txt").write_text("the pump runs")
    finally:
        os.chdir(before)
    return place


@pytest.mark.parametrize("depth", [0, 1, DEPTH, TOO_LONG])
def test_a_directory_of_any_depth_is_removed(tmp_path: Path, depth: int) -> None:
    remove(nested(tmp_path / "deep", depth))
    assert not (tmp_path / "deep").exists()


def test_of_links_only_the_link_is_removed(tmp_path: Path) -> None:
    kept = nested(tmp_path / "kept", 2)
    tree = nested(tmp_path / "tree", 1)
    (tree / "link").symlink_to(kept)
    (tree / "d" / "loop").symlink_to(tree)
    (tree / "d" / "file").symlink_to(kept / "d/d/bottom.txt")
    remove(tree)
    assert not tree.exists()
    assert (kept / "d/d/bottom.txt").read_text() == "the pump runs"


def test_what_is_not_there_is_removed_already(tmp_path: Path) -> None:
    remove(tmp_path / "nothing")


def test_what_may_not_be_removed_is_told_unless_errors_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no")

    tree = nested(tmp_path / "tree", 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        with pytest.raises(PermissionError):
            remove(tree)
        remove(tree, ignore_errors=True)
    assert tree.exists()


def test_files_of_any_depth_are_found(tmp_path: Path) -> None:
    tree = nested(tmp_path / "deep", DEPTH)
    (tree / "a.txt").write_text("a")
    assert [path.name for path in files_in(tree)] == ["a.txt", "bottom.txt"]
    assert sum(1 for _ in entries_in(tree)) == DEPTH + 2


def test_leftovers_of_any_depth_are_removed(tmp_path: Path) -> None:
    nested(tmp_path / "step-00000001.partial-1-x", DEPTH)
    assert remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_directory_of_any_depth_is_committed(tmp_path: Path) -> None:
    with committed(tmp_path / "made") as partial:
        nested(partial / "deep", DEPTH)
    assert [path.name for path in files_in(tmp_path / "made")] == ["bottom.txt"]


def test_data_of_any_depth_are_read(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    nested(paths.claim("data"), DEPTH)
    spec = a_config(data={"train": {"claimName": "data"}, "format": "Text"}).data
    source = Source.find(spec.train, spec, paths, reading(spec))
    assert [record.text for record in source.records()] == ["the pump runs"]
