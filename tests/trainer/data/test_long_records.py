"""A record that is longer than any may be is refused by its place, and is never in memory as a whole."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.data.formats import delimited, jsons, parquet, text
from deepseek_trainer.data.sources import Source
from deepseek_trainer.tasks.language.reading import reading
from support.builders.data import CLAIM, a_data_spec, some_paths, write_text

MOST = 1 << 20
LONG = "x" * (MOST + 1)


@pytest.fixture
def paths(tmp_path, monkeypatch):
    for module, name in ((jsons, "MAX_LINE"), (delimited, "MAX_LINE"), (text, "MAX_TEXT"), (parquet, "MAX_TEXT")):
        monkeypatch.setattr(module, name, MOST)
    return some_paths(tmp_path)


def texts_of(paths, skipped=None):
    spec = a_data_spec(onBadRecord="Fail" if skipped is None else "Skip")
    source = Source.find(VolumePath(claim_name=CLAIM), spec, paths, reading(spec))
    told = (lambda _: None) if skipped is None else (lambda error: skipped.append(str(error)))
    return [record.text for record in source.records(told)]


def refusal_of(paths):
    with pytest.raises(DataError) as caught:
        texts_of(paths)
    return str(caught.value)


def a_table(paths, values, **options):
    pq.write_table(pa.table({"text": values}), write_text(paths, "a.parquet", ""), **options)


def test_a_line_of_json_is_refused_and_the_next_one_read(paths):
    lines = [json.dumps({"text": text}) for text in ("first", LONG, "last")]
    write_text(paths, "a.jsonl", "\n".join(lines))
    assert refusal_of(paths) == (
        "a.jsonl:2: longer than 1 MiB, the most of one record "
        "(hint: cut it into several records, or set data.onBadRecord: Skip)"
    )
    skipped = []
    assert texts_of(paths, skipped) == ["first", "last"]
    assert len(skipped) == 1


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_last_line_that_is_too_long_is_refused_once(paths, end):
    write_text(paths, "a.jsonl", '{"text": "first"}\n' + LONG * 3 + end)
    skipped = []
    assert texts_of(paths, skipped) == ["first"]
    assert [message[:9] for message in skipped] == ["a.jsonl:2"]


def test_a_line_of_just_the_most_is_read(paths):
    text = "x" * (MOST - len('{"text": ""}\n'))
    write_text(paths, "a.jsonl", json.dumps({"text": text}) + "\n")
    assert texts_of(paths) == [text]


@pytest.mark.parametrize(
    "content", [f'text\nfirst\n"{LONG}"\n', "text\nfirst\n" + LONG, 'text\nfirst\n"' + "x\n" * MOST]
)
def test_a_record_of_a_table_is_refused(paths, content):
    write_text(paths, "a.csv", content)
    write_text(paths, "b.jsonl", '{"text": "last"}\n')
    assert refusal_of(paths).startswith("a.csv:3: longer than 1 MiB")
    assert texts_of(paths, []) == ["first", "last"]


def test_a_header_of_a_table_is_refused(paths):
    write_text(paths, "a.csv", LONG)
    assert refusal_of(paths).startswith("a.csv:1: longer than 1 MiB")


@pytest.mark.parametrize("values", [[LONG], ["first", LONG], ["x"] * 100 + [LONG] + ["y"] * 100])
def test_a_row_of_a_parquet_file_is_refused(paths, values):
    a_table(paths, values)
    assert "longer than 1 MiB, the most of one record" in refusal_of(paths)


def test_a_text_is_refused(paths):
    write_text(paths, "a.txt", LONG)
    assert refusal_of(paths).startswith("a.txt: longer than 1 MiB")


def test_a_long_line_takes_no_more_memory_than_one_may(paths):
    write_text(paths, "a.jsonl", '{"text": "first"}\n' + LONG * 40 + '\n{"text": "last"}\n')
    tracemalloc.start()
    try:
        assert texts_of(paths, []) == ["first", "last"]
        assert tracemalloc.get_traced_memory()[1] < 8 * MOST
    finally:
        tracemalloc.stop()
