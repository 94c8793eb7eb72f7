"""A power cut at any moment of a save: what is found is the checkpoint before or the new one, never anything else."""

import random
from pathlib import Path

import pytest

from crash_replay import after_a_power_cut, laid_out, recorded, tree_of
from deepseek_trainer.contract.retention import Retention
from vault_builders import a_state, a_store, weights_of

BOTH = pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])


@BOTH
@pytest.mark.parametrize("steps", [0, 2], ids=["first save", "third save"])
def test_a_power_cut_leaves_the_checkpoint_before_or_the_new_one(tmp_path: Path, sealed: bool, steps: int) -> None:
    root, luck = tmp_path / "work", random.Random(7)
    root.mkdir()
    store = a_store(root, sealed=sealed)
    for step in range(1, steps + 1):
        store.save(step, a_state(step), {})
    before = tree_of(root)
    with recorded(root) as operations:
        store.save(steps + 1, a_state(steps + 1), {})
        store.prune(Retention(keep_last=2), best_step=None)
    assert {"make", "sync", "rename"} <= {operation.kind for operation in operations}
    found = set()
    for end in range(len(operations) + 1):
        for kept in (0.0, 0.5, 0.5, 1.0):
            tree = after_a_power_cut(before, operations[:end], luck, kept)
            place = tmp_path / f"{end}-{luck.random()}"
            place.mkdir()
            laid_out(tree, root, place)
            found.add(newest(place, sealed))
    assert found == {steps, steps + 1}
    assert newest(place, sealed) == steps + 1  # all was done, and synced


def newest(work: Path, sealed: bool) -> int:
    """Step of the newest checkpoint, whose content is checked; 0: none."""
    store = a_store(work, sealed=sealed)
    info = store.latest()
    if info is None:
        return 0
    assert not store.refused
    assert weights_of(store.load(info)[0]) == info.step
    return info.step


def test_the_test_would_find_a_commit_that_syncs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, luck = tmp_path / "work", random.Random(7)
    root.mkdir()
    store = a_store(root)
    store.save(1, a_state(1), {})
    before = tree_of(root)
    with recorded(root) as operations:
        store.save(2, a_state(2), {})
    unsynced = [operation for operation in operations if operation.kind != "sync"]
    outcomes = set()
    for _ in range(30):
        place = tmp_path / str(luck.random())
        place.mkdir()
        laid_out(after_a_power_cut(before, unsynced, luck, 0.5), root, place)
        outcomes.add(outcome(place))
    assert "IntegrityError" in outcomes


def outcome(work: Path) -> str:
    try:
        return str(newest(work, sealed=True))
    except Exception as error:
        return type(error).__name__
