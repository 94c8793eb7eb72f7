import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import DataError, IntegrityError
from deepseek_trainer.data.cursor import STATE_BYTES, Cursor
from deepseek_trainer.data.permutation import permuted

DIGEST = "5a" * 32
seeds = st.integers(0, 2**31 - 1)


def a_cursor(**changes):
    return Cursor(**{"seed": 7, "rows": 23, "global_batch": 8, "data_digest": DIGEST} | changes)


def order(cursor, steps):
    """Row indices of so many steps, and the cursor after them."""
    taken = []
    for _ in range(steps):
        taken += cursor.rank_slice(0, 1).tolist()
        cursor = cursor.advanced()
    return taken, cursor


@given(size=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 2**40))
def test_permutation_is_a_bijection(size, seed, epoch):
    assert sorted(permuted(np.arange(size), size, seed, epoch).tolist()) == list(range(size))


@given(size=st.integers(1, 2**62), seed=seeds, data=st.data())
def test_permutation_stays_in_range_without_visiting_the_others(size, seed, data):
    position = data.draw(st.integers(0, size - 1))
    assert 0 <= permuted(np.array([position]), size, seed, 0)[0] < size


def test_permutation_shuffles_evenly():
    """Where row 0 to 9 lands among ten places, over many epochs: chi-squared of each row, 9 degrees of freedom."""
    landed = np.stack([permuted(np.arange(10), 10, 1, epoch) for epoch in range(1000)])
    for row in range(10):
        counts = np.bincount(landed[:, row], minlength=10)
        assert ((counts - 100) ** 2 / 100).sum() < 33.7, f"row {row} has p < 0.0001: {counts}"


def test_neighbours_do_not_stay_neighbours():
    image = permuted(np.arange(100_000), 100_000, 3, 0)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02


def test_order_is_pinned_so_that_old_checkpoints_go_on_with_the_same_rows():
    assert a_cursor(rows=10, global_batch=12).rank_slice(0, 1).tolist() == [0, 2, 8, 1, 3, 7, 9, 4, 5, 6, 2, 0]


def test_epochs_and_seeds_differ():
    epochs = {tuple(permuted(np.arange(50), 50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(epochs) == 25


@settings(max_examples=30)
@given(rows=st.integers(1, 60), share=st.integers(1, 9), world_size=st.integers(1, 8), consumed=st.integers(0, 500))
def test_ranks_share_the_same_order_for_any_number_of_ranks(rows, share, world_size, consumed):
    cursor = a_cursor(rows=rows, global_batch=share * world_size, consumed=consumed)
    slices = [cursor.rank_slice(rank, world_size) for rank in range(world_size)]
    assert np.concatenate(slices).tolist() == cursor.rank_slice(0, 1).tolist()
    assert {len(part) for part in slices} == {share}


@settings(max_examples=30)
@given(rows=st.integers(1, 60), batch=st.integers(1, 70), before=st.integers(0, 4), after=st.integers(0, 4), seed=seeds)
def test_resuming_anywhere_equals_a_straight_run(rows, batch, before, after, seed):
    start = a_cursor(seed=seed, rows=rows, global_batch=batch)
    first, stopped = order(start, before)
    resumed = Cursor.from_state(stopped.state(), rows=rows, global_batch=batch, data_digest=DIGEST)
    assert resumed == stopped
    assert first + order(resumed, after)[0] == order(start, before + after)[0]


@settings(max_examples=30)
@given(rows=st.integers(1, 40), batch=st.integers(1, 50))
def test_each_epoch_has_every_row_once_though_batches_straddle_epochs(rows, batch):
    taken, _ = order(a_cursor(rows=rows, global_batch=batch), -(-3 * rows // batch))
    for epoch in range(3):
        assert sorted(taken[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_changing_the_batch_size_goes_on_with_the_same_order():
    one, stopped = order(a_cursor(global_batch=8), 2)
    rest, _ = order(Cursor.from_state(stopped.state(), rows=23, global_batch=5, data_digest=DIGEST), 6)
    assert one + rest == order(a_cursor(global_batch=1), 46)[0]


def test_epoch_counts_passes():
    assert order(a_cursor(rows=16), 3)[1].epoch == 1.5


def test_state_is_32_bytes_as_documented():
    state = a_cursor(seed=1, consumed=2).state()
    assert state == b"\1" + bytes(7) + b"\2" + bytes(7) + b"\x5a" * 16
    assert len(state) == STATE_BYTES


def test_state_of_other_data_is_refused():
    with pytest.raises(DataError, match="cannot go on with other data") as error:
        Cursor.from_state(a_cursor().state(), rows=23, global_batch=8, data_digest="00" * 32)
    assert error.value.code == 65


def test_state_that_an_earlier_version_wrote_under_another_name_of_the_data_is_resumed():
    state, name = a_cursor().advanced().state(), "ab" * 20
    resumed = Cursor.from_state(state, rows=23, global_batch=8, data_digest=name, earlier=DIGEST)
    assert (resumed.consumed, resumed.data_digest) == (8, name)


def test_state_of_another_length_is_refused():
    with pytest.raises(IntegrityError, match="has 31 bytes"):
        Cursor.from_state(bytes(31), rows=23, global_batch=8, data_digest=DIGEST)
