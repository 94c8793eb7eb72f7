"""A store of checkpoints: saved, resumed, pruned, set aside, on any number of ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek_trainer.checkpoints.catalog import list_checkpoints, verify
from deepseek_trainer.checkpoints.store import CheckpointStore, Refused
from deepseek_trainer.contract.errors import ConfigError, IntegrityError, TryAgainError
from deepseek_trainer.contract.retention import Retention
from support.builders.vault import JOB, OTHER_KEK, Ranks, a_state, a_store, a_vault, latest_weights, weights_of

BOTH = pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])


def names_in(store: CheckpointStore) -> list[str]:
    """Directory entries without `.sealed` and the random end of a name."""
    names = (path.name.removesuffix(".sealed") for path in store.directory.iterdir())
    return sorted(name.rsplit("-", 1)[0] if "set-aside" in name else name for name in names)


@BOTH
def test_a_saved_state_comes_back(tmp_path: Path, sealed: bool) -> None:
    state = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "scheduler": {"step": 3, "name": None}}
    a_store(tmp_path, sealed=sealed).save(3, state, {"cursor": "00ff"})
    store = a_store(tmp_path, sealed=sealed)
    info = store.latest()
    assert info is not None
    loaded, meta = store.load(info)
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["scheduler"] == {"step": 3, "name": None}
    assert meta == {"cursor": "00ff"}


@BOTH
def test_a_checkpoint_describes_itself(tmp_path: Path, sealed: bool) -> None:
    store = a_store(tmp_path, sealed=sealed, attempt=2)
    info = store.save(3, a_state(3), {"loss": 1.5})
    assert (info.step, info.path.name, info.sealed, info.best) == (3, "step-00000003", sealed, False)
    assert info.key_id == store.vault.key_id
    assert info.meta == {"loss": 1.5}
    assert info.size_bytes == sum(path.stat().st_size for path in info.path.glob("rank-*"))
    assert info.created.endswith("Z")
    assert (info.manifest.job, info.manifest.attempt, info.manifest.previous) == (JOB, 2, None)
    tensors = {(each.name, each.dtype, each.shape, each.file) for each in info.manifest.tensors}
    assert tensors == {
        ("model/layers.0.weight", "F32", (4,), "rank-00000.safetensors"),
        ("rng/cpu", "U8", (3,), "rank-00000.safetensors"),
    }
    assert store.save(4, a_state(4), {}).manifest.previous == info.manifest_digest


def test_a_sealed_checkpoint_has_no_word_in_the_clear(tmp_path: Path) -> None:
    info = a_store(tmp_path).save(3, a_state(3), {"cursor": "private"})
    files = list(info.path.iterdir())
    assert {path.suffix for path in files} == {".sealed"}
    assert not any(word in path.read_bytes() for path in files for word in (b"layers", b"private", b"format"))


def test_a_store_that_was_never_used_has_no_checkpoint(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    assert store.latest() is None
    assert store.at(3) is None
    assert list_checkpoints(store.directory, store.vault) == []


def test_the_newest_and_any_other_checkpoint_can_be_found(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in (1, 2, 3):
        store.save(step, a_state(step), {})
    assert latest_weights(store) == 3
    info = store.at(2)
    assert info is not None
    assert weights_of(store.load(info)[0]) == 2
    assert store.at(7) is None


@BOTH
def test_a_damaged_newest_checkpoint_is_passed_over_and_reported(tmp_path: Path, sealed: bool) -> None:
    store = a_store(tmp_path, sealed=sealed)
    for step in (1, 2, 3):
        store.save(step, a_state(step), {})
    damage(store, 3)
    assert latest_weights(store) == 2
    assert [refused.step for refused in store.refused] == [3]
    assert "rank-00000.safetensors" in store.refused[0].reason
    assert store.at(3) is None


def test_a_step_that_was_damaged_can_be_saved_again(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in (1, 2):
        store.save(step, a_state(step), {})
    damage(store, 2)
    store.save(2, a_state(20), {})
    assert latest_weights(store) == 20
    assert names_in(store) == ["HEAD.json", "step-00000001", "step-00000002", "step-00000002.set-aside"]


def test_it_is_an_error_when_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in (1, 2):
        store.save(step, a_state(step), {})
        damage(store, step)
    with pytest.raises(IntegrityError, match=r"no checkpoint in .* authenticates; the newest: .*step-00000002"):
        store.latest()


def test_another_key_or_none_is_refused_at_once(tmp_path: Path) -> None:
    a_store(tmp_path).save(1, a_state(1), {})
    with pytest.raises(IntegrityError, match="wrong key"):
        a_vault(tmp_path, kek=OTHER_KEK)
    with pytest.raises(IntegrityError, match=r"HEAD\.json\.sealed is sealed, and this job has no key"):
        a_store(tmp_path, sealed=False)


def test_a_job_that_seals_refuses_a_store_in_the_clear(tmp_path: Path) -> None:
    a_store(tmp_path, sealed=False).save(1, a_state(1), {})
    with pytest.raises(IntegrityError, match="not sealed"):
        a_store(tmp_path)


def test_a_store_of_another_job_is_refused(tmp_path: Path) -> None:
    store = a_store(tmp_path, sealed=False)
    with pytest.raises(IntegrityError, match="holds checkpoints of job lab/demo, not of lab/other"):
        CheckpointStore(store.directory, a_vault(tmp_path, job="lab/other", sealed=False))


@BOTH
def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path, sealed: bool) -> None:
    store = a_store(tmp_path, sealed=sealed)
    for step in (1, 2, 3, 4):
        store.save(step, a_state(step), {})
        store.prune(Retention(keep_last=2), best_step=1)
    assert names_in(store) == ["HEAD.json", "step-00000001", "step-00000003", "step-00000004"]
    assert [(info.step, getattr(info, "best", None)) for info in list_checkpoints(store.directory, store.vault)] == [
        (1, True),
        (3, False),
        (4, False),
    ]
    assert latest_weights(a_store(tmp_path, sealed=sealed)) == 4


@pytest.mark.parametrize("damaged", [(2,), (2, 3)], ids=["the newest", "the newest two"])
def test_pruning_spares_the_checkpoint_that_was_resumed_from_until_there_is_a_newer_one(
    tmp_path: Path, damaged: tuple[int, ...]
) -> None:
    for step in (1, *damaged):
        a_store(tmp_path).save(step, a_state(step), {})
    store, keep_one = a_store(tmp_path), Retention(keep_last=1)
    for step in damaged:
        damage(store, step)
    assert latest_weights(store) == 1
    assert store.at(2) is None
    store.prune(keep_one, best_step=None)
    assert latest_weights(a_store(tmp_path)) == 1
    store = a_store(tmp_path)
    assert latest_weights(store) == 1
    store.save(4, a_state(4), {})
    store.prune(keep_one, best_step=None)
    assert names_in(store) == ["HEAD.json", "step-00000004"]


def test_a_refused_checkpoint_takes_the_place_of_no_good_one(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in (1, 2, 3):
        store.save(step, a_state(step), {})
    damage(store, 3)
    assert latest_weights(store) == 2
    store.save(4, a_state(4), {})
    store.prune(Retention(keep_last=2), best_step=None)
    assert names_in(store) == ["HEAD.json", "step-00000002", "step-00000003", "step-00000004"]


def test_setting_aside_makes_an_older_checkpoint_the_newest_and_deletes_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in (1, 2, 3):
        store.save(step, a_state(step), {})
    store.set_aside(after_step=1)
    assert latest_weights(store) == 1
    assert names_in(store) == ["HEAD.json", "step-00000001", "step-00000002.set-aside", "step-00000003.set-aside"]
    store.save(2, a_state(20), {})
    assert latest_weights(a_store(tmp_path)) == 20


def test_setting_all_aside_starts_over(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    store.save(1, a_state(1), {})
    store.set_aside(after_step=-1)
    assert store.latest() is None
    assert store.save(1, a_state(10), {}).manifest.previous is None
    assert latest_weights(store) == 10


def test_setting_aside_after_a_step_that_was_never_saved_is_refused_with_those_that_were(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in (10, 20):
        store.save(step, a_state(step), {})
    with pytest.raises(ConfigError, match=r"no checkpoint of step 15 .*there are: 10, 20"):
        store.set_aside(after_step=15)
    assert latest_weights(store) == 20


def test_a_run_that_was_superseded_can_no_longer_commit(tmp_path: Path) -> None:
    old = a_store(tmp_path)
    old.save(1, a_state(1), {})
    new = a_store(tmp_path)
    for forbidden in (
        lambda: old.save(2, a_state(2), {}),
        lambda: old.prune(Retention(keep_last=1), None),
        lambda: old.set_aside(-1),
    ):
        with pytest.raises(TryAgainError, match="another attempt has taken"):
            forbidden()
    assert latest_weights(new) == 1


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    store.save(1, a_state(1), {})
    for leftover in ("step-00000002.partial-1-abc", "step-00000000.pruned-abc"):
        (store.directory / leftover).mkdir()
        (store.directory / leftover / "rank-00000.safetensors").write_bytes(b"x")
    (store.directory / "HEAD.json.sealed.partial-abc").write_bytes(b"x")
    assert names_in(a_store(tmp_path)) == ["HEAD.json", "step-00000001"]


@BOTH
def test_several_ranks_save_together_and_each_gets_its_own_back(tmp_path: Path, sealed: bool) -> None:
    def save_and_load(rank: int, exchange: Any) -> Any:
        store = a_store(tmp_path, sealed=sealed, rank=rank, world_size=3, exchange=exchange)
        mine = {"rng": {"cpu": torch.full((2,), rank, dtype=torch.uint8)}} | {"model": {"w": torch.ones(2)}}
        store.save(5, mine, {"lead": rank})
        info = store.latest()
        assert info is not None
        state, meta = store.load(info)
        return sorted(state), int(state["rng"]["cpu"][0]), meta["lead"]

    assert Ranks(3).run(save_and_load) == [(["model", "rng"], rank, 0) for rank in range(3)]


def test_a_larger_world_gets_the_shared_state_and_no_foreign_random_state(tmp_path: Path) -> None:
    a_store(tmp_path).save(5, a_state(5), {})

    def load(rank: int, exchange: Any) -> Any:
        store = a_store(tmp_path, rank=rank, world_size=2, exchange=exchange)
        info = store.latest()
        assert info is not None
        return sorted(store.load(info)[0])

    assert Ranks(2).run(load) == [["model", "rng"], ["model"]]


def test_when_one_rank_cannot_write_no_rank_has_a_checkpoint(tmp_path: Path) -> None:
    def save(rank: int, exchange: Any) -> None:
        store = a_store(tmp_path, rank=rank, world_size=2, exchange=exchange)
        store.save(1, a_state(1), {})
        if rank == 1:
            store._write = lambda partial, *_: (partial / "missing" / "file").write_bytes(b"")  # type: ignore[method-assign]
        store.save(2, a_state(2), {})

    outcomes = Ranks(2).run(save)
    assert [type(outcome) for outcome in outcomes] == [TryAgainError] * 2
    assert "rank 1: the storage failed" in str(outcomes[0])
    store = a_store(tmp_path)
    assert names_in(store) == ["HEAD.json", "step-00000001"]


@BOTH
def test_listing_names_what_is_refused_and_why(tmp_path: Path, sealed: bool) -> None:
    store = a_store(tmp_path, sealed=sealed)
    for step in (1, 2, 3):
        store.save(step, a_state(step), {})
    (manifest,) = (store.directory / "step-00000002").glob("manifest.json*")
    manifest.unlink()
    (store.directory / "step-00000003").rename(tmp_path / "stolen")
    found = list_checkpoints(store.directory, store.vault)
    assert [(each.step, type(each) is Refused) for each in found] == [(1, False), (2, True), (3, True)]
    assert all("is missing" in each.reason for each in found if isinstance(each, Refused))


@BOTH
def test_verifying_reads_every_byte(tmp_path: Path, sealed: bool) -> None:
    store = a_store(tmp_path, sealed=sealed)
    info = store.save(1, a_state(1), {})
    verify(info, store.vault)
    damage(store, 1)
    with pytest.raises(IntegrityError, match=r"rank-00000\.safetensors"):
        verify(info, store.vault)


def damage(store: CheckpointStore, step: int) -> None:
    """Flip one bit in the middle of the tensors."""
    (path,) = (store.directory / f"step-{step:08d}").glob("rank-00000.safetensors*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
