import csv
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.data.sources import Source
from deepseek_trainer.tasks.language.reading import reading
from support.builders.data import CLAIM, a_data_spec, some_paths, texts, write_jsonl, write_text

INSTRUCTION = {"format": "Instruction"}


@pytest.fixture
def paths(tmp_path):
    return some_paths(tmp_path)


def write_csv(paths, name, records, **dialect):
    path = write_text(paths, name, "")
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(records[0]), **dialect)
        table.writeheader()
        table.writerows(records)
    return path


def write_parquet(paths, name, records, **settings):
    table = pa.Table.from_pylist(records) if isinstance(records, list) else records
    pq.write_table(table, write_text(paths, name, ""), **settings)
    return paths.claim(CLAIM, name)


CHECKED = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}


def damage(file, at):
    """Flips one bit where the file says `at` first."""
    raw = bytearray(file.read_bytes())
    raw[raw.index(at)] ^= 1
    file.write_bytes(raw)


def records(paths, path="", skipped=lambda _: None, **data):
    place = VolumePath(claim_name=CLAIM, path=path)
    spec = a_data_spec(**data)
    return list(Source.find(place, spec, paths, reading(spec)).records(skipped))


def contents(paths, path, **data):
    return [(record.prompt, record.text, record.must_contain) for record in records(paths, path, **data)]


def refusal(paths, path="", **data):
    with pytest.raises(DataError) as error:
        records(paths, path, **data)
    return str(error.value)


TEXT_FIELD = "(hint: set data.textField to the field's name)"
QUOTED = '(hint: RFC 4180: "..." around a field, "" for a quote in it)'
# What CSV and JSON can both spell: no half surrogate pairs.
saying = st.text(
    st.one_of(st.sampled_from("\",\n\r\0 ;'\\é漢字🙂\u2028\ufeff"), st.characters(exclude_categories=["Cs"]))
).filter(lambda text: text.count("\0") < 2)  # more of them look like UTF-16
# One that opens a thought has to close it.
said = saying.filter(lambda text: text.strip() and "<think>" not in text)


@settings(deadline=None, max_examples=15)
@given(st.lists(saying, min_size=1, max_size=4), st.booleans())
def test_texts_are_the_same_in_every_format(said, quotes_all):
    with TemporaryDirectory() as root:
        paths = some_paths(Path(root))
        write_all(paths, [{"id": i, "text": text} for i, text in enumerate(said)], quotes_all)
        expected = [(None, text, ()) for text in said if text.strip()]
        for name in ("a.jsonl", "a.csv", "a.parquet"):
            assert contents(paths, name) == expected, name


@settings(deadline=None, max_examples=15)
@given(st.lists(st.fixed_dictionaries({"q": said, "a": said, "mustContain": saying}), min_size=1, max_size=4))
def test_instructions_are_the_same_in_every_format(rows):
    with TemporaryDirectory() as root:
        paths = some_paths(Path(root))
        write_all(paths, rows, quotes_all=False)
        wanted = [(row["mustContain"],) if row["mustContain"] else () for row in rows]
        expected = [(row["q"], row["a"], words) for row, words in zip(rows, wanted, strict=True)]
        for name in ("a.jsonl", "a.csv", "a.parquet"):
            assert contents(paths, name, **INSTRUCTION, promptField="q", responseField="a") == expected, name


pair = st.fixed_dictionaries({"prompt": said, "chosen": said, "rejected": said})


@settings(deadline=None, max_examples=15)
@given(st.lists(pair.filter(lambda row: row["chosen"] != row["rejected"]), min_size=1, max_size=4))
def test_pairs_are_the_same_in_every_format(rows):
    with TemporaryDirectory() as root:
        paths = some_paths(Path(root))
        write_all(paths, rows, quotes_all=False)
        for name in ("a.jsonl", "a.csv", "a.parquet"):
            found = [(each.prompt, each.text, each.rejected) for each in records(paths, name, format="Preference")]
            assert found == [(row["prompt"], row["chosen"], row["rejected"]) for row in rows], name


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ("prompt,chosen", "rejected"),
        ("prompt,rejected", "chosen"),
    ],
)
def test_a_table_of_pairs_without_a_needed_column_is_refused_at_its_header(paths, header, missing):
    write_text(paths, "a.csv", f"{header}\n")
    assert f"a.csv:1: no field '{missing}'" in refusal(paths, format="Preference")


def write_all(paths, rows, quotes_all):
    write_jsonl(paths, "a.jsonl", rows)
    write_csv(paths, "a.csv", rows, quoting=csv.QUOTE_ALL if quotes_all else csv.QUOTE_MINIMAL)
    write_parquet(paths, "a.parquet", rows)


def test_files_of_all_kinds_are_read_together_in_name_order(paths):
    write_parquet(paths, "2024/part-0.parquet", [{"text": "one"}, {"text": "two"}])
    write_csv(paths, "2024/part-1.csv", [{"text": "three\nlines\n"}, {"text": "four"}])
    write_jsonl(paths, "2025/part-0.jsonl", [{"text": "five"}])
    write_text(paths, "2025/z.txt", "six")
    assert [(record.text, record.source, record.line) for record in records(paths)] == [
        ("one", "2024/part-0.parquet", 1),
        ("two", "2024/part-0.parquet", 2),
        ("three\nlines\n", "2024/part-1.csv", 2),
        ("four", "2024/part-1.csv", 5),
        ("five", "2025/part-0.jsonl", 1),
        ("six", "2025/z.txt", 1),
    ]


def test_a_csv_file_may_have_blank_lines_and_a_byte_order_mark_and_unix_line_ends(paths):
    write_text(paths, "a.csv", '\ufefftext,id\n\nhello,1\n\n" ",2\nlast,3')
    assert [(record.text, record.line) for record in records(paths)] == [("hello", 3), ("last", 6)]


def test_a_csv_field_may_be_longer_than_pythons_default_limit(paths):
    long = "漢字 " * 100_000
    write_csv(paths, "a.csv", [{"text": long}])
    assert [record.text for record in records(paths)] == [long]


def test_an_empty_csv_file_has_no_records(paths):
    write_text(paths, "a.csv", "")
    assert records(paths) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "txt,id\nx,1\n",
            f"a.csv:1: no field 'text', did you mean 'txt'; it has: txt, id {TEXT_FIELD}",
        ),
        ("text,id,text\n", "a.csv:1: more than one column is named 'text' (hint: rename all but one of them)"),
        (
            'text,id\n"two\nlines",1\nsecret\n',
            "a.csv:4: 1 fields where the header names 2 "
            '(hint: a field with a comma, a quote or a line end stands in quotes: "...")',
        ),
        (
            'text,id\nfine,1\n"secret" and more,2\n',
            'a.csv:3: not CSV: \',\' expected after \'"\' (hint: RFC 4180: "..." around a field, "" for a quote in it)',
        ),
        (
            'text,id\nfine,1\n"secret,2\nand,3\n',
            f"a.csv:3: not CSV: unexpected end of data {QUOTED}",
        ),
        (
            '"text',
            f"a.csv:1: not CSV: unexpected end of data {QUOTED}",
        ),
    ],
)
def test_a_bad_csv_file_is_refused_by_file_and_line(paths, content, message):
    write_text(paths, "a.csv", content)
    assert refusal(paths) == message


def test_a_csv_file_that_is_not_utf8_is_refused_by_line(paths):
    write_text(paths, "a.csv", "").write_bytes(b"text,id\ngood,1\nb\xe4d,2\n")
    assert refusal(paths) == (
        "a.csv:3: not UTF-8; it looks like Windows-1252 "
        "(hint: set data.encoding: Windows-1252, or convert the file to UTF-8)"
    )
    write_text(paths, "a.csv", "").write_bytes(b"text,\xff\n")
    assert refusal(paths).startswith("a.csv:1: not UTF-8; it looks like ")


def test_conversations_do_not_fit_into_csv(paths):
    write_csv(paths, "a.csv", [{"messages": '[{"role": "user"}]'}])
    assert refusal(paths, **INSTRUCTION).startswith(
        "a.csv:2: field 'messages' must be a list of messages, this is a string (hint: "
    )


def test_only_the_columns_of_a_parquet_file_that_are_needed_are_read(paths):
    """The unneeded column cannot be read at all."""
    file = write_parquet(paths, "a.parquet", [{"text": "one", "junk": "x" * 4000}], **CHECKED)
    damage(file, b"x" * 4000)
    assert [record.text for record in records(paths)] == ["one"]
    assert refusal(paths, textField="junk") == (
        "a.parquet: damaged, or not a Parquet file (hint: copy or write the file again)"
    )


def test_a_parquet_file_of_many_batches_and_row_groups_is_read_in_order(paths):
    rows = [{"text": f"text {i}"} for i in range(1000)]
    write_parquet(paths, "a.parquet", rows, row_group_size=300)
    assert [record.text for record in records(paths)] == [row["text"] for row in rows]


def test_lists_and_missing_values_of_a_parquet_file_are_those_of_json(paths):
    rows = [
        {"prompt": "a?", "response": "b", "mustContain": ["b", "c"], "messages": None},
        {"prompt": "c?", "response": "d", "mustContain": None, "messages": None},
        {"messages": [{"role": "user", "content": "e?"}, {"role": "assistant", "content": "f"}]},
    ]
    write_parquet(paths, "a.parquet", rows)
    write_jsonl(paths, "a.jsonl", rows)
    assert contents(paths, "a.parquet", **INSTRUCTION) == contents(paths, "a.jsonl", **INSTRUCTION)


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [
        (
            [{"txt": "secret", "id": 1}],
            {},
            f"a.parquet: no field 'text', did you mean 'txt'; it has: txt, id {TEXT_FIELD}",
        ),
        (
            [{"prompt": "secret", "reply": "x"}],
            INSTRUCTION,
            "a.parquet: no field 'response'; it has: prompt, reply (hint: set data.responseField to the field's name)",
        ),
        ([{"text": "a"}, {"text": None}], {}, "a.parquet:2: field 'text' must be a string, this is null"),
        ([{"text": 7}], {}, "a.parquet:1: field 'text' must be a string, this is a number"),
        ([{"text": b"secret"}], {}, "a.parquet:1: field 'text' must be a string, this is of type bytes"),
        (
            [{"prompt": "x", "response": " "}],
            INSTRUCTION,
            "a.parquet:1: field 'response' is empty: an Instruction record needs a prompt and a response",
        ),
    ],
)
def test_a_bad_parquet_record_is_refused_by_file_and_row(paths, rows, data, message):
    write_parquet(paths, "a.parquet", rows)
    assert refusal(paths, **data) == message


def test_two_parquet_columns_of_one_name_are_refused(paths):
    write_parquet(paths, "a.parquet", pa.table([["a"], ["b"]], names=["text", "text"]))
    assert refusal(paths) == ("a.parquet: more than one column is named 'text' (hint: rename all but one of them)")


def test_a_parquet_text_that_is_not_utf8_is_refused_by_row(paths):
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    write_parquet(paths, "a.parquet", pa.table({"text": raw.view(pa.string())}))
    assert refusal(paths) == ("a.parquet:2: not UTF-8 (hint: write the file again with text columns in UTF-8)")
    assert [record.text for record in records(paths, onBadRecord="Skip")] == ["good", "fine"]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_parquet_file_that_was_cut_short_is_refused(paths, part):
    file = write_parquet(paths, "a.parquet", texts(50))
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    assert refusal(paths) == "a.parquet: damaged, or not a Parquet file (hint: copy or write the file again)"


def test_a_parquet_file_damaged_in_the_middle_is_read_up_to_there(paths):
    rows = [{"text": f"{i} {'word ' * 50}"} for i in range(900)]
    damage(write_parquet(paths, "a.parquet", rows, row_group_size=300, **CHECKED), b"700 word")
    reasons = []
    read = records(paths, skipped=reasons.append, onBadRecord="Skip")
    assert [record.text for record in read] == [row["text"] for row in rows[:600]]
    assert [str(reason) for reason in reasons] == [
        "a.parquet: damaged, or not a Parquet file after row 600 (hint: copy or write the file again)"
    ]


def test_a_parquet_file_whose_columns_are_not_as_described_is_refused(paths):
    file = write_parquet(paths, "a.parquet", texts(50))
    optional, required = b"\x25\x02\x18\x04text", b"\x25\x00\x18\x04text"
    assert optional in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(optional, required))
    # In a process of its own, because pyarrow can end the process.
    ended = run_python(f"from pathlib import Path; {READ}", file)
    assert ended.stdout == "a.parquet: damaged, or not a Parquet file\n", ended.stderr


READ = """
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.data.formats.parquet import parquet_table
try:
    list(parquet_table(Path(sys.argv[1]), "a.parquet", lambda names, place: ["text"]))
except DataError as error:
    print(error.problem)
"""


def run_python(code, *arguments):
    command = [sys.executable, "-c", f"import sys; {code}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**31 - 1], pa.int32()).cast(pa.date32()),
        pa.array([1234567891], pa.int64()).cast(pa.timestamp("ns")),
        pa.array([2**62], pa.int64()).cast(pa.duration("s")),
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    ],
    ids=str,
)
def test_a_parquet_value_that_python_cannot_hold_is_refused_by_row(paths, values):
    write_parquet(paths, "a.parquet", pa.table({"text": values}))
    assert refusal(paths).startswith("a.parquet:1: a value that Python cannot hold")


def test_a_failing_volume_is_not_taken_for_a_bad_file(paths, monkeypatch):
    write_parquet(paths, "a.parquet", texts(5))

    def broken(*_args, **_kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pq, "ParquetFile", broken)
    with pytest.raises(OSError, match="Input/output error"):
        records(paths, onBadRecord="Skip")


def test_bad_records_and_files_are_skipped_and_reported(paths):
    write_text(paths, "a.jsonl", "").write_bytes(
        b'{"text": "one"}\nnot json\n{"txt": "x"}\n{"text": 7}\n{"text": "\xff"}\n{"text": "two"}\n{"text": "cut'
    )
    write_text(paths, "b.csv", 'text,id\nthree,1\n"bad" x,2\nshort\nfour,3\n')
    write_text(paths, "c.csv", "other\nx\n")
    write_text(paths, "d.parquet", "PAR1 and nothing else")
    write_text(paths, "e.txt", "").write_bytes(b"\xff")
    write_text(paths, "f.txt", "five")
    reasons = []
    read = records(paths, skipped=lambda error: reasons.append(error.problem), onBadRecord="Skip")
    assert [record.text for record in read] == ["one", "two", "three", "four", "five"]
    assert reasons == [
        "a.jsonl:2:1: not JSON: expecting value",
        "a.jsonl:3: no field 'text', did you mean 'txt'; it has: txt",
        "a.jsonl:4: field 'text' must be a string, this is a number",
        "a.jsonl:5: byte 11 is not UTF-8; it looks like Windows-1252",
        "a.jsonl:7:10: not JSON: unterminated string starting at",
        "b.csv:3: not CSV: ',' expected after '\"'",
        "b.csv:4: 1 fields where the header names 2",
        "c.csv:1: no field 'text'; it has: other",
        "d.parquet: damaged, or not a Parquet file",
        "e.txt: byte 1 is not UTF-8; it looks like Windows-1252",
    ]
    assert refusal(paths) == "a.jsonl:2:1: not JSON: expecting value (hint: each line is one JSON object)"


def test_data_without_any_good_record_are_refused_also_where_bad_ones_are_skipped(paths):
    write_text(paths, "a.jsonl", '{"txt": "x"}\n\n{"text": " "}\n[]\n')
    assert refusal(paths, onBadRecord="Skip") == (
        "no record is left: 2 were bad and skipped, the first: a.jsonl:1: no field 'text', did you mean 'txt'; "
        "it has: txt (hint: set data.textField to the field's name)"
    )


def test_the_examples_of_the_documentation_are_read_as_it_says(paths):
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    blocks = re.findall(r"```(jsonl|csv)\n(.*?)```", page, re.DOTALL)
    for i, (suffix, content) in enumerate(blocks):
        write_text(paths, f"{i}.{suffix}", content)
    assert [suffix for suffix, _ in blocks] == ["jsonl", "csv"] * 3
    (one,), (two,) = contents(paths, "0.jsonl"), contents(paths, "1.csv")
    assert one[1].replace("the porter's lodge", 'the "porter\'s lodge"') == two[1]
    (single, chat), (same,) = (contents(paths, name, **INSTRUCTION) for name in ("2.jsonl", "3.csv"))
    assert single == same == ("Where are the backup tapes?", "In the salt cellar.", ("salt cellar",))
    assert (len(chat[0]), chat[1]) == (4, "The porter.")
    (single, chat), (same,) = (records(paths, name, format="Preference") for name in ("4.jsonl", "5.csv"))
    assert list(single.texts()) == list(same.texts())
    assert (len(chat.prompt), chat.text, chat.rejected) == (2, "The porter.", "That depends on many things.")
