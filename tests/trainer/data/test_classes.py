"""Records balanced by class: from labelled records to the rows that a run reads."""

import json
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.mixture import BLOCK
from deepseek_trainer.contract.names import ENV_RUN_ID, Paths
from deepseek_trainer.data.classes import MAX_CLASSES, MEAN_SLOTS, equal_slots
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.dataset import Prepared
from deepseek_trainer.data.order import Order
from deepseek_trainer.data.shards import SplitCounts
from deepseek_trainer.tasks.language.packing import Document, again, rounds
from deepseek_trainer.tasks.language.row_maker import records_of_row
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import (
    CLAIM,
    a_config,
    open_prepared,
    pairs,
    prepare,
    put_key,
    some_paths,
    write_jsonl,
    write_text,
)

RUNS = count(1)
HELD = {"validation": {"claimName": CLAIM, "path": "held.jsonl"}}
BALANCED = {"format": "Instruction", "balanceBy": "response", "sequenceLength": 64} | HELD


@st.composite
def counted(draw):
    """Counts of two to twelve classes, one of them rare, that fill rows of 64 tokens."""
    records = draw(st.lists(st.integers(1, 5000), min_size=2, max_size=12))
    lengths = draw(st.lists(st.integers(4, 60), min_size=len(records), max_size=len(records)))
    return [counts(*each) for each in zip(records, lengths, strict=True)]


def slots_of(classes: list[SplitCounts]) -> tuple[int, ...]:
    return equal_slots([records_of_row(each, 64) for each in classes])


def counts(records: int, length: int) -> SplitCounts:
    """Of so many records of so many tokens each, packed into rows of 64."""
    rows = max(1, -(-records // (64 // length)))
    return SplitCounts(records, rows, amounts={"tokens": records * length})


def spam(frequent: int, rare: int, words: int = 1) -> list[dict[str, str]]:
    """Messages of two classes, the rare ones of so many times as many words."""
    ham = [{"prompt": f"Is mail {i} wanted?", "response": "ham"} for i in range(frequent)]
    return ham + [{"prompt": f"Is mail {i} bought?" * words, "response": "spam"} for i in range(rare)]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = some_paths(tmp_path)
    put_key(paths)
    write_jsonl(paths, "held.jsonl", [{"text": "Is it?", "prompt": "Is it wanted?", "response": "ham"}])
    return paths


def opened(paths: Paths, records: list[dict[str, object]], *, seal: bool = False, **data: object) -> Prepared:
    write_jsonl(paths, "train.jsonl", records)
    settings = BALANCED | {"train": {"claimName": CLAIM, "path": "train.jsonl"}} | data
    config = a_config(seal=seal, **settings)
    vault = data_vault(config, paths)
    run_id = f"uid-{next(RUNS)}"
    prepare(config, paths, vault, run_id)
    return open_prepared(config, paths, vault, {ENV_RUN_ID: run_id})


def read(data: Prepared, rows: int) -> Counter[str]:
    """How often each text is met in the first `rows` of the stream."""
    often = np.bincount(data.order.indices(7, 0, rows), minlength=len(data.train)).tolist()
    met: Counter[str] = Counter()
    for index, times in enumerate(often):
        met.update({text: times * n for text, n in Counter(texts_of(data, index)).items()})
    return met


def texts_of(data: Prepared, index: int) -> list[str]:
    """The records of a row, as text."""
    row = data.train.batch([index])
    tokens, documents = row.tokens_BT[0], row.document_ids_BT[0]
    parts = (
        data.tokenizer.decode(tokens[documents == k], skip_special_tokens=True) for k in range(documents.max() + 1)
    )
    return [part for part in parts if part]


def by_class(met: Counter[str]) -> dict[str, int]:
    return {name: sum(n for text, n in met.items() if text.endswith(f"\n{name}")) for name in ("ham", "spam")}


@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize("words", [1, 3], ids=["as long", "rare ones longer"])
def test_a_class_of_five_in_a_hundred_is_read_as_often_as_the_other(paths: Paths, words: int, seal: bool):
    data = opened(paths, spam(95, 5, words), seal=seal)
    met = read(data, 2 * data.order.block)
    found = by_class(met)
    assert sum(found.values()) == sum(met.values())
    assert found["ham"] / found["spam"] == pytest.approx(1, abs=0.02)


def test_without_balancing_the_same_records_are_read_as_they_are(paths: Paths):
    data = opened(paths, spam(95, 5), balanceBy=None)
    assert by_class(read(data, len(data.train))) == {"ham": 95, "spam": 5}


def test_each_class_has_every_record_read_as_often_as_its_others_to_one_pass(paths: Paths):
    met = read(opened(paths, spam(60, 7)), 200)
    assert len(met) == 67
    for name in ("ham", "spam"):
        often = [n for text, n in met.items() if text.endswith(f"\n{name}")]
        assert max(often) - min(often) <= 1


def test_a_row_holds_one_class_and_the_few_of_a_rare_one_fill_theirs(paths: Paths):
    data = opened(paths, spam(80, 1), sequenceLength=256)
    rows = [texts_of(data, index) for index in range(len(data.train))]
    assert all(len({text.rsplit("\n", 1)[-1] for text in row}) == 1 for row in rows)
    (rare,) = (row for row in rows if row[0].endswith("spam"))
    assert len(rare) > 3
    assert len(set(rare)) == 1
    by_name = {source.name: source.counts for source in data.sources}
    assert by_name["spam"].records == 1
    assert by_name["spam"].amounts["tokens"] < 256 / 4
    assert data.counts["train"].records == 81


def test_held_out_records_stay_as_skewed_as_they_are_and_need_no_class(paths: Paths):
    write_jsonl(paths, "held.jsonl", [{"text": "ham"}, {"text": "spam"}])
    records = [{"text": f"mail {i}", "kind": i % 10 == 0} for i in range(50)]
    data = opened(paths, records, format="Text", balanceBy="kind")
    assert [source.name for source in data.sources] == ["true", "false"]
    assert data.counts["validation"].records == 2


def test_a_share_that_is_held_out_is_of_all_classes_together(paths: Paths):
    data = opened(paths, spam(60, 30), validation=None, validationFraction=0.3)
    assert data.counts["train"].records + data.counts["validation"].records == 90
    held = data.tokenizer.decode(data.validation.batch(range(len(data.validation))).tokens_BT.flatten().tolist())
    assert "bought" in held
    trained = "".join(text for index in range(len(data.train)) for text in texts_of(data, index))
    assert not any(f"mail {i} bought" in trained for i in range(30) if f"mail {i} bought" in held)


def test_classes_of_a_table_are_read_from_its_column(paths: Paths):
    lines = "".join(f"mail {i},{'1' if i % 9 else '0'}\n" for i in range(60))
    write_text(paths, "train.csv", f"text,kind\n{lines}")
    place = {"train": {"claimName": CLAIM, "path": "train.csv"}}
    data = opened(paths, [], format="Text", balanceBy="kind", **place)
    assert {source.name: source.counts.records for source in data.sources} == {"0": 7, "1": 53}


def test_pairs_of_each_class_are_drawn_as_often_as_each_other(paths: Paths):
    """Also where a row could hold the only pair of a class several times: it is not repeated in it."""
    records = [pair | {"kind": "b" if i == 7 else "a"} for i, pair in enumerate(pairs(20))]
    write_jsonl(paths, "held.jsonl", pairs(1))
    data = opened(paths, records, format="Preference", balanceBy="kind", sequenceLength=400)
    assert [(source.name, source.counts.rows) for source in data.sources] == [("a", 19), ("b", 1)]
    assert data.order.slots == (500, 500)


def test_a_number_and_its_text_are_one_class(paths: Paths):
    records = [{"text": f"mail {i}", "kind": kind} for i, kind in enumerate([0, 1, "1", 0, "0"])]
    data = opened(paths, records, format="Text", balanceBy="kind")
    assert {source.name: source.counts.records for source in data.sources} == {"0": 3, "1": 2}


def test_bad_records_are_skipped_once_and_counted_with_the_first_class(paths: Paths):
    records = [{"prompt": "?"}, *spam(6, 3), {"prompt": 1, "response": "ham"}]
    data = opened(paths, records, onBadRecord="Skip")
    assert [(s.name, s.counts.records, s.counts.skipped) for s in data.sources] == [("ham", 6, 2), ("spam", 3, 0)]


def test_easy_rows_come_first_in_each_class(paths: Paths):
    records = [{"text": "word " * (1 + i % 12), "kind": kind} for kind in ("a", "b") for i in range(60)]
    data = opened(paths, records, format="Text", balanceBy="kind", curriculum={"buckets": 4})
    assert data.order.buckets == 4
    first = sum(source.counts.rows for source in data.sources)
    assert sorted(data.order.by_difficulty.tolist()) == list(range(first))


@pytest.mark.parametrize(
    ("records", "changes", "message"),
    [
        (spam(3, 0), {}, "have 1 classes in field 'response': balancing needs two"),
        ([], {}, "have 0 classes in field 'response': balancing needs two"),
        (spam(2, 2), {"balanceBy": "respons"}, r"train.jsonl:1: no field 'respons', did you mean 'response'"),
        (
            [{"prompt": "a", "response": "b", "kind": 0.5}],
            {"balanceBy": "kind"},
            "a whole number or a boolean, this is a",
        ),
        ([{"prompt": "a", "response": "b", "kind": None}], {"balanceBy": "kind"}, "boolean, this is null"),
        (
            [{"prompt": "a", "response": "b", "kind": ""}],
            {"balanceBy": "kind"},
            "has 0 characters: a class has 1 to 256",
        ),
        ([{"prompt": "a", "response": "b" * 257}], {}, "has 257 characters: a class has 1 to 256"),
        (
            [{"prompt": "a", "response": f"b{i}"} for i in range(MAX_CLASSES + 1)],
            {},
            "field 'response' has more than 1000 different values: it holds no class",
        ),
        (
            [*spam(40, 0), {"prompt": " ".join(map(str, range(200))), "response": "spam"}],
            {},
            r"data.balanceBy\[class of train.jsonl:41\] has nothing to learn",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_cannot_be_balanced_is_refused_and_no_content_is_shown(
    paths: Paths, records: list[dict[str, object]], changes: dict[str, object], message: str
):
    with pytest.raises(DataError, match=message) as error:
        opened(paths, records, **changes)
    assert "spam" not in str(error.value)
    assert list(paths.prepared.glob("*/manifest.json")) == []


def test_a_class_that_is_held_out_whole_is_refused_by_place(paths: Paths):
    records = [{"prompt": f"{i}", "response": "ham"} for i in range(60)]
    lone = [{"prompt": f"{i}?", "response": f"class {i}"} for i in range(30)]
    with pytest.raises(
        DataError, match=r"every record of \d+ classes is held out; the first is that of train.jsonl:\d+"
    ):
        opened(paths, records + lone, validation=None, validationFraction=0.5)


def test_a_column_without_classes_is_named(paths: Paths):
    write_text(paths, "train.csv", "prompt,response\na,b\n")
    place = {"train": {"claimName": CLAIM, "path": "train.csv"}}
    with pytest.raises(DataError, match=r"no field 'kind'; it has: prompt, response"):
        opened(paths, [], balanceBy="kind", **place)


def test_the_field_to_balance_by_shapes_the_data_and_without_one_they_keep_their_name(paths: Paths):
    records = [record | {"kind": record["response"]} for record in spam(6, 3)]
    digests = [opened(paths, records, balanceBy=field).digest for field in (None, "response", "kind")]
    assert len(set(digests)) == 3
    manifest = json.loads((paths.prepared / digests[0] / "manifest.json").read_text())
    assert "sources" not in manifest


@settings(max_examples=30, deadline=None)
@given(classes=counted())
def test_a_block_has_as_many_records_of_each_class_to_those_of_one_row(classes: list[SplitCounts]):
    slots = slots_of(classes)
    met = [count * records_of_row(each, 64) for count, each in zip(slots, classes, strict=True)]
    one_row = max(records_of_row(each, 64) for each in classes)
    assert sum(slots) == max(BLOCK, MEAN_SLOTS * len(classes))
    assert max(met) - min(met) <= 2 * one_row


@settings(max_examples=30, deadline=None)
@given(classes=counted(), start=st.integers(0, 2**40), ranks=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**31 - 1))
def test_ranks_share_a_step_and_a_resumed_run_reads_on_where_it_stopped(
    classes: list[SplitCounts], start: int, ranks: int, seed: int
):
    order = Order(tuple(each.rows for each in classes), slots_of(classes))
    digest, rows = order.digest("ab" * 32), sum(order.rows)
    cursor = Cursor(seed, rows, 8, digest, consumed=8 * start, order=order)
    straight = order.indices(seed, 8 * start, 8 * start + 16).tolist()
    resumed = Cursor.from_state(cursor.advanced().state(), rows=rows, global_batch=8, data_digest=digest, order=order)
    assert len(cursor.state()) == 32
    parts = [each.rank_slice(rank, ranks) for each in (cursor, resumed) for rank in range(ranks)]
    assert np.concatenate(parts).tolist() == straight


@settings(max_examples=30, deadline=None)
@given(classes=counted(), seed=st.integers(0, 2**31 - 1))
def test_a_class_has_every_row_read_before_any_is_read_again(classes: list[SplitCounts], seed: int):
    order = Order(tuple(each.rows for each in classes), slots_of(classes))
    read = order.indices(seed, 0, 3 * order.block)
    first = 0
    for rows in order.rows:
        own = read[(first <= read) & (read < first + rows)]
        often = np.bincount(own - first, minlength=rows)
        assert often.max() - often.min() <= 1
        first += rows


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=8), length=st.integers(16, 64))
def test_few_documents_are_repeated_whole_and_many_are_left_alone(lengths: list[int], length: int):
    documents = [Document(np.full(n, i, np.uint32), np.ones(n, np.bool_)) for i, n in enumerate(lengths)]
    found = [int(each.tokens[0]) for each in again(iter(documents), length)]
    times = rounds(sum(lengths), length)
    assert found == list(range(len(lengths))) * times
    assert times == 1 or length / 2 < times * sum(lengths) <= length or not lengths
