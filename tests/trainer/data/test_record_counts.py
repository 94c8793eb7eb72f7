"""What a run tells of its records: how many, what became of them, and which of their fields it did not use."""

from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.findings import completeness
from deepseek_trainer.contract.progress import MOST_NAMES
from deepseek_trainer.data.shards import SplitCounts, record_counts

FIELDS = st.dictionaries(st.text("abc", min_size=1, max_size=9), st.integers(1, 99), max_size=9)
SPLITS = st.fixed_dictionaries(
    dict.fromkeys(("train", "validation"), st.builds(SplitCounts, records=st.just(9), rows=st.just(3), unused=FIELDS))
)


@given(SPLITS)
def test_the_fields_that_were_not_used_in_most_records_are_named(splits: dict[str, SplitCounts]) -> None:
    found = record_counts(splits, batch=1, is_private=False)
    names = {name for counts in splits.values() for name in counts.unused}
    assert (found.records, found.rows, found.unused_fields) == (18, 3, len(names))
    assert len(found.unused or {}) == min(MOST_NAMES, len(names))
    assert completeness(found).status == str(not names)


@given(SPLITS)
def test_of_a_private_job_no_field_is_named(splits: dict[str, SplitCounts]) -> None:
    found = record_counts(splits, batch=1, is_private=True)
    assert found.unused is None
    assert found.unused_fields == len({name for counts in splits.values() for name in counts.unused})
