import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.mixture import BLOCK, MixSource
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.order import Order, slots_of
from deepseek_trainer.data.permutation import permuted

DIGEST = "5a" * 32
seeds = st.integers(0, 2**31 - 1)
weights = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=16)


@st.composite
def shares(draw):
    """Weights of some sources, and minimum shares [slots] that leave room for all."""
    given_weights = draw(weights)
    minimum, room = [], BLOCK - len(given_weights)
    for _ in given_weights:
        extra = draw(st.integers(0, room))
        minimum.append(1 + extra)
        room -= extra
    return given_weights, minimum


@st.composite
def mixes(draw):
    """Orders of two to five small sources."""
    rows = draw(st.lists(st.integers(1, 700), min_size=2, max_size=5))
    return Order(tuple(rows), slots_of(draw(st.permutations([1, 2.5, 10, 0.001, 7][: len(rows)])), [1] * len(rows)))


def a_cursor(order, **changes):
    return Cursor(
        **{"seed": 7, "rows": sum(order.rows), "global_batch": 48, "data_digest": DIGEST, "order": order} | changes
    )


def source_of(order, indices):
    """Which source each row belongs to."""
    return np.searchsorted(np.cumsum(order.rows), indices, "right")


def some_lengths(count):
    return permuted(np.arange(count), count, 5, 0)


@settings(max_examples=20, deadline=None)
@given(shares())
def test_slots_fill_a_block_and_no_source_has_less_than_its_minimum(given_shares):
    given_weights, minimum = given_shares
    slots = slots_of(given_weights, minimum)
    assert sum(slots) == BLOCK
    assert all(count >= least for count, least in zip(slots, minimum, strict=True))


@settings(max_examples=20, deadline=None)
@given(shares())
def test_sources_above_their_minimum_share_the_rest_by_weight_to_a_slot(given_shares):
    given_weights, minimum = given_shares
    slots = slots_of(given_weights, minimum)
    above = [k for k in range(len(slots)) if slots[k] > minimum[k]]
    rest = sum(slots[k] for k in above)
    for k in above:
        assert abs(slots[k] - rest * given_weights[k] / sum(given_weights[j] for j in above)) < len(slots)


@pytest.mark.parametrize(
    ("given_weights", "minimum", "slots"),
    [
        ([6, 4], [1, 1], (600, 400)),
        ([3, 2], [1, 1], (600, 400)),
        ([1, 1, 1], [1, 1, 1], (334, 333, 333)),
        ([1, 3], [600, 1], (600, 400)),
        ([9, 1], [600, 1], (900, 100)),
        ([1, 3, 1], [600, 1, 1], (600, 300, 100)),
        ([1, 1, 98], [500, 300, 1], (500, 300, 200)),
        ([1, 2, 1], [700, 180, 1], (700, 200, 100)),  # the second falls below its own only after the first is held
        ([1, 1.2, 1], [700, 180, 1], (700, 180, 120)),
        ([1, 10**6], [1, 1], (1, 999)),
        ([1, 1], [999, 1], (999, 1)),
    ],
)
def test_slots_are_thousandths_and_a_source_below_its_minimum_takes_from_the_others(given_weights, minimum, slots):
    assert slots_of(given_weights, minimum) == slots


@pytest.mark.parametrize(("share", "slots"), [(None, 1), (1e-9, 1), (0.001, 1), (0.07, 70), (0.6, 600), (0.6001, 601)])
def test_a_minimum_share_is_rounded_up_to_thousandths(share, slots):
    assert MixSource(name="a", claim_name="a", minimum_share=share).minimum_slots == slots


@settings(max_examples=20, deadline=None)
@given(order=mixes(), block=st.integers(0, 2**40), seed=seeds)
def test_every_block_has_exactly_the_slots_of_each_source(order, block, seed):
    indices = order.indices(seed, block * BLOCK, (block + 1) * BLOCK)
    assert tuple(np.bincount(source_of(order, indices), minlength=len(order.rows))) == order.slots


@settings(max_examples=20, deadline=None)
@given(order=mixes(), length=st.integers(1, 3 * BLOCK), seed=seeds)
def test_the_first_rows_have_the_shares_of_all_but_for_fewer_rows_than_the_number_of_sources(order, length, seed):
    found = np.bincount(source_of(order, order.indices(seed, 0, length)), minlength=len(order.rows))
    assert abs(found - length * np.array(order.slots) / BLOCK).max() < len(order.rows)


@settings(max_examples=20, deadline=None)
@given(order=mixes(), seed=seeds)
def test_a_source_has_all_its_rows_read_once_before_any_is_read_again(order, seed):
    indices = order.indices(seed, 0, 4 * BLOCK)
    first = 0
    for source, rows in enumerate(order.rows):
        own = indices[source_of(order, indices) == source] - first
        epochs = own[: len(own) // rows * rows].reshape(-1, rows)
        assert (np.sort(epochs, axis=1) == np.arange(rows)).all()
        assert len(set(own[len(own) // rows * rows :])) == len(own) % rows
        first += rows


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 200), start=st.integers(0, 2**40), length=st.integers(1, 30), seed=seeds)
def test_one_source_is_read_as_it_was_before_there_were_several(rows, start, length, seed):
    epochs, offsets = np.divmod(np.arange(start, start + length), rows)
    expected = [
        permuted(np.array([offset]), rows, seed, int(epoch))[0] for epoch, offset in zip(epochs, offsets, strict=True)
    ]
    assert Order((rows,)).indices(seed, start, start + length).tolist() == expected
    assert Order((rows,)).digest(DIGEST) == DIGEST


def test_sources_and_blocks_are_shuffled_each_in_its_own_way():
    order = Order((500, 500), (500, 500))
    indices = order.indices(3, 0, 2 * BLOCK)
    sources = source_of(order, indices)
    assert not np.array_equal(indices[sources == 0], indices[sources == 1] - 500)
    assert not np.array_equal(sources[:BLOCK], sources[BLOCK:])


@settings(max_examples=20, deadline=None)
@given(order=mixes(), world_size=st.integers(1, 8), consumed=st.integers(0, 2**40))
def test_ranks_share_the_same_mix_for_any_number_of_ranks(order, world_size, consumed):
    cursor = a_cursor(order, global_batch=world_size * 5, consumed=consumed)
    parts = [cursor.rank_slice(rank, world_size) for rank in range(world_size)]
    assert np.concatenate(parts).tolist() == cursor.rank_slice(0, 1).tolist()


@settings(max_examples=20, deadline=None)
@given(order=mixes(), batch=st.integers(1, 1500), before=st.integers(0, 3), graded=st.booleans())
def test_resuming_a_mix_anywhere_equals_a_straight_run(order, batch, before, graded):
    if graded:
        order = Order(order.rows, order.slots, 3, np.concatenate([np.arange(sum(order.rows))]))
    cursor = a_cursor(order, global_batch=batch, data_digest=order.digest(DIGEST))
    straight = a_cursor(order, global_batch=batch * (before + 1)).rank_slice(0, 1)
    for _ in range(before):
        cursor = cursor.advanced()
    resumed = Cursor.from_state(
        cursor.state(), rows=cursor.rows, global_batch=batch, data_digest=order.digest(DIGEST), order=order
    )
    assert resumed == cursor
    assert resumed.rank_slice(0, 1).tolist() == straight[before * batch :].tolist()


@pytest.mark.parametrize(
    "other",
    [Order((60, 40), (601, 399)), Order((60, 40), (600, 400), 5, np.arange(100)), Order((100,))],
    ids=["other shares", "a curriculum", "one source"],
)
def test_a_run_does_not_go_on_with_another_mix(other):
    order = Order((60, 40), (600, 400))
    state = a_cursor(order, data_digest=order.digest(DIGEST)).state()
    assert len(state) == 32
    with pytest.raises(DataError, match="nor with other shares or another order") as error:
        Cursor.from_state(state, rows=100, global_batch=48, data_digest=other.digest(DIGEST), order=other)
    assert "data.sources, data.balanceBy, data.curriculum" in error.value.hint


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 400), buckets=st.integers(2, 30), seed=seeds)
def test_a_first_epoch_has_every_row_once_and_goes_from_bucket_to_harder_bucket(rows, buckets, seed):
    by_difficulty = some_lengths(rows)
    order = Order((rows,), buckets=buckets, by_difficulty=by_difficulty)
    read = order.indices(seed, 0, rows)
    assert sorted(read) == list(range(rows))
    for bucket in range(buckets):
        low, high = rows * bucket // buckets, rows * (bucket + 1) // buckets
        assert sorted(read[low:high]) == sorted(by_difficulty[low:high])


def test_rows_are_shuffled_inside_a_bucket_and_later_epochs_as_a_whole():
    order = Order((300,), buckets=3, by_difficulty=np.arange(300))
    first, second = order.indices(1, 0, 300), order.indices(1, 300, 600)
    assert np.corrcoef(first, np.arange(300))[0, 1] > 0.85
    assert abs(np.corrcoef(first[:100], np.arange(100))[0, 1]) < 0.3
    assert second.tolist() == Order((300,)).indices(1, 300, 600).tolist()


def test_each_source_of_a_mix_has_a_first_epoch_of_its_own():
    order = Order((100, 900), (500, 500), 4, np.arange(1000))
    read = order.indices(1, 0, BLOCK)
    own = read[source_of(order, read) == 1]
    assert all(own[:225] < 325)
    assert not all(read[read < 100][100:125] < 25)
