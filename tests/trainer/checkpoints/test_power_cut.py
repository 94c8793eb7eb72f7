"""A power cut at any moment of a change: what is found is the state before or the new one, never anything else."""

import io
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.keyring import KEYRING
from deepseek_trainer.storage.keys import generate_kek, keks_in
from deepseek_trainer.storage.rotation import renew
from deepseek_trainer.storage.vault import Purpose, Vault
from support.builders.vault import JOB, Ranks, a_state, a_store, weights_of
from support.faults.crashes import damage
from support.faults.power_cut import Names, Sync, Tree, Write, after_a_power_cut, laid_out, recorded

KEPT = (0.0, 0.5, 1.0)  # chances of what was not synced, for each moment


def a_keyed_store(work: Path) -> CheckpointStore:
    """Under the keys that lie in the work directory."""
    keys = JobKeys(work / KEYRING, JOB, keks_in(work / "keys"))
    return CheckpointStore(work / "checkpoints", Vault(JOB, Purpose.CHECKPOINT, keys))


Open = Callable[[Path], CheckpointStore]


@dataclass(frozen=True)
class Story:
    """What was there, what was done, and the weights that may be found then; the last: once all is synced."""

    before: Callable[[Path], object]
    act: Callable[[Path], object]
    found: tuple[float | None, ...]
    opened: Open = a_store
    damaged: frozenset[int] = field(default_factory=frozenset)  # steps that may be refused


def in_the_clear(work: Path) -> CheckpointStore:
    return a_store(work, sealed=False)


def saved(*steps: int, opened: Open = a_store) -> Callable[[Path], CheckpointStore]:
    def save(work: Path) -> CheckpointStore:
        store = opened(work)
        for step in steps:
            put(store, step)
        return store

    return save


def put(store: CheckpointStore, step: int, weights: int | None = None) -> None:
    weights = step if weights is None else weights
    store.save(step, a_state(weights), {"weights": weights})


def save_and_prune(opened: Open) -> Callable[[Path], None]:
    def act(work: Path) -> None:
        store = opened(work)
        put(store, 3)
        store.prune(Retention(keep_last=2), best_step=None)

    return act


def a_directory(work: Path) -> None:
    (work / "checkpoints").mkdir()


def with_a_damaged_newest(work: Path) -> None:
    directory = saved(1, 2)(work).directory
    damage(directory / "step-00000002/rank-00000.safetensors.sealed")


def save_it_again(work: Path) -> None:
    store = a_store(work, attempt=2)
    info = store.latest()
    assert info is not None
    assert info.step == 1
    put(store, 2, weights=20)


def left_by_a_crash(work: Path) -> None:
    """A checkpoint that was not recorded yet, one half written and one half deleted."""
    directory = saved(1)(work).directory
    head = (directory / "HEAD.json.sealed").read_bytes()
    saved(2)(work)
    (directory / "HEAD.json.sealed").write_bytes(head)
    for name in ("step-00000003.partial-1-x", "step-00000000.pruned-x"):
        shutil.copytree(directory / "step-00000001", directory / name)


def take_over_and_save(work: Path) -> None:
    put(a_store(work, attempt=2), 3)


def set_two_aside_and_go_on(work: Path) -> None:
    store = a_store(work)
    store.set_aside(after_step=1)
    put(store, 2, weights=20)


def with_a_key(work: Path) -> None:
    generate_kek(work / "keys/kek")
    saved(1, opened=a_keyed_store)(work)


def by_two_ranks(work: Path) -> None:
    ranks = Ranks(2)

    def save(rank: int, exchange: Callable[[object], list[object]]) -> None:
        put(a_store(work, rank=rank, world_size=2, exchange=exchange), 3)

    assert ranks.run(save) == [None, None]


STORIES = {
    "first save": Story(lambda _: None, saved(1), (None, 1)),  # which makes the keyring, too
    "first save, clear": Story(a_directory, saved(1, opened=in_the_clear), (None, 1), in_the_clear),
    "third save": Story(saved(1, 2), save_and_prune(a_store), (2, 3)),
    "third save, clear": Story(saved(1, 2, opened=in_the_clear), save_and_prune(in_the_clear), (2, 3), in_the_clear),
    "a damaged newest, saved again": Story(with_a_damaged_newest, save_it_again, (1, 20), damaged=frozenset({2})),
    "second attempt": Story(left_by_a_crash, take_over_and_save, (2, 3)),
    "set aside": Story(saved(1, 2, 3), set_two_aside_and_go_on, (3, 1, 20)),
    "two ranks": Story(saved(1, 2), by_two_ranks, (2, 3)),
    "a new key": Story(with_a_key, lambda work: renew(work / KEYRING, work / "keys/kek"), (1,), a_keyed_store),
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
def test_a_power_cut_leaves_what_was_before_or_what_is_new(tmp_path: Path, story: Story) -> None:
    root, luck = tmp_path / "work", random.Random(7)
    root.mkdir()
    story.before(root)
    with recorded(root) as recording:
        story.act(root)
    assert {Write, Sync, Names} == {type(operation) for operation in recording.operations}
    found, trees = set(), set()
    for end in range(len(recording.operations) + 1):
        for kept in KEPT:
            tree = after_a_power_cut(recording, end, luck, kept)
            if (key := frozenset(tree.items())) not in trees:
                trees.add(key)
                found.add(newest(tree, tmp_path / "found", story))
    assert found == set(story.found)
    assert newest(after_a_power_cut(recording, None, luck, 0.0), tmp_path / "found", story) == story.found[-1]


NEW_VOLUME = Story(lambda _: None, saved(1, opened=in_the_clear), (None, 1), in_the_clear)


def test_the_first_save_in_a_new_volume_outlives_a_power_cut(tmp_path: Path) -> None:
    with recorded(tmp_path) as recording:
        NEW_VOLUME.act(tmp_path)
    tree = after_a_power_cut(recording, None, random.Random(7), 0.0)
    assert newest(tree, tmp_path / "found", NEW_VOLUME) == 1


def newest(tree: Tree, work: Path, story: Story) -> float | None:
    """Weights of the newest checkpoint, which are those that were saved; None: there is none."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    laid_out(tree, work)
    store = story.opened(work)
    info = store.latest()
    assert {refused.step for refused in store.refused} <= story.damaged
    if info is None:
        return None
    state, meta = store.load(info)
    assert weights_of(state) == meta["weights"]
    return weights_of(state)


def test_the_test_would_find_a_commit_that_syncs_nothing(tmp_path: Path) -> None:
    root, luck, story = tmp_path / "work", random.Random(7), STORIES["third save"]
    root.mkdir()
    story.before(root)
    with recorded(root) as recording:
        story.act(root)
    recording.operations = [operation for operation in recording.operations if not isinstance(operation, Sync)]
    outcomes = set()
    for _ in range(20):
        try:
            outcomes.add(str(newest(after_a_power_cut(recording, None, luck, 0.5), tmp_path / "found", story)))
        except Exception as error:
            outcomes.add(type(error).__name__)
    assert "IntegrityError" in outcomes


def test_what_was_not_synced_is_found_whole_torn_and_with_holes(tmp_path: Path) -> None:
    with (
        recorded(tmp_path) as recording,
        io.FileIO(os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file,
    ):
        file.write(b"abc")
        file.write(b"defghi")
    luck = random.Random(7)
    found = {after_a_power_cut(recording, None, luck, 0.5).get(Path("file")) for _ in range(3000)}
    assert {None, b"", b"abc", b"a", b"abcdefghi", b"abcdef", b"\0\0c", b"abc\0\0\0ghi", b"abcd\0fghi"} <= found


def test_what_happens_in_a_directory_may_stay_when_its_new_name_does_not(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").touch()
    with recorded(tmp_path) as recording:
        shutil.rmtree((tmp_path / "old").rename(tmp_path / "new"))
    luck = random.Random(7)
    found = [after_a_power_cut(recording, None, luck, 0.5) for _ in range(50)]
    assert {Path("old"): None} in found
    assert {Path("new"): None, Path("new/file"): b""} in found
    assert {} in found


def test_a_write_that_was_not_heard_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AssertionError), recorded(tmp_path):
        (tmp_path / "file").write_bytes(b"x")
