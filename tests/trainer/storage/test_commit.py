import pytest

from deepseek_trainer.storage import commit
from deepseek_trainer.storage.commit import committed


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_directory_is_invisible_until_the_block_ends(tmp_path):
    with committed(tmp_path / "parent" / "result") as partial:
        (partial / "a").write_text("a")
        assert not (tmp_path / "parent" / "result").exists()
    assert names(tmp_path / "parent") == ["result"]
    assert names(tmp_path / "parent" / "result") == ["a"]


def test_nothing_remains_when_the_block_fails(tmp_path):
    with pytest.raises(FileNotFoundError), committed(tmp_path / "result") as partial:
        (partial / "missing" / "a").write_text("a")
    assert names(tmp_path) == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_older_directory_is_replaced_as_a_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:  # as on NFS
        monkeypatch.setattr(commit, "_exchanged", lambda one, other: False)
    for name in ("old", "new"):
        with committed(tmp_path / "result") as partial:
            (partial / name).write_text(name)
    assert names(tmp_path) == ["result"]
    assert names(tmp_path / "result") == ["new"]


def test_older_directory_stays_when_the_block_fails(tmp_path):
    with committed(tmp_path / "result") as partial:
        (partial / "old").write_text("old")
    with pytest.raises(OSError, match="disk"), committed(tmp_path / "result"):
        raise OSError("disk")
    assert names(tmp_path / "result") == ["old"]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / "result.partial-0").mkdir()
    (tmp_path / "other.partial-0").mkdir()
    with committed(tmp_path / "result"):
        pass
    assert names(tmp_path) == ["other.partial-0", "result"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_links_go_and_what_they_lead_to_stays(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(commit, "_exchanged", lambda one, other: False)
    outside, parent = tmp_path / "outside", tmp_path / "parent"
    for directory in (outside, parent):
        directory.mkdir()
    (outside / "theirs").write_text("theirs")
    for name in ("result", "result.partial-of-a-crash"):
        (parent / name).symlink_to(outside)
    with committed(parent / "result") as partial:
        (partial / "ours").write_text("ours")
    assert names(parent) == ["result"]
    assert names(parent / "result") == ["ours"]
    assert names(outside) == ["theirs"]
