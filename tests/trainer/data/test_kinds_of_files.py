"""Records are the same in every format, packed or not, and in every encoding; and no file is passed over in silence."""

# ruff: noqa: RUF001  letters of other scripts are what is read

import csv
import gzip
import io
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.data import Encoding
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.data.formats import jsons
from deepseek_trainer.data.sources import Source
from deepseek_trainer.tasks.language.reading import reading
from support.builders.data import CLAIM, a_data_spec, some_paths, write_text

INSTRUCTION = {"format": "Instruction"}
PAIRS = [{"prompt": "Where is salt?", "response": 'In the "cellar", below.'}, {"prompt": "Who?", "response": "a\nb"}]


@pytest.fixture
def paths(tmp_path):
    return some_paths(tmp_path)


def lay(paths, name, content):
    write_text(paths, name, "").write_bytes(content)


def read(paths, path="", skipped=lambda _: None, **data):
    spec = a_data_spec(**data)
    return [*Source.find(VolumePath(claim_name=CLAIM, path=path), spec, paths, reading(spec)).records(skipped)]


def refusal(paths, path="", **data):
    with pytest.raises(DataError) as error:
        read(paths, path, **data)
    return str(error.value)


def contents(paths, **data):
    return [(record.prompt, record.text) for record in read(paths, **data)]


def a_table(pairs, delimiter):
    stream = io.StringIO(newline="")
    table = csv.DictWriter(stream, ["prompt", "response"], delimiter=delimiter)
    table.writeheader()
    table.writerows(pairs)
    return stream.getvalue()


def a_parquet_file(pairs):
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(pairs), stream)
    return stream.getvalue()


def zstd(content):
    return pa.Codec("zstd").compress(content, asbytes=True)


FORMS = {
    "lines.jsonl": lambda pairs: "\n".join(json.dumps(pair) for pair in pairs),
    "lines.ndjson": lambda pairs: "\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs),
    "list.json": lambda pairs: json.dumps(pairs, indent=2),
    "short-list.json": lambda pairs: json.dumps(pairs, ensure_ascii=False),
    "list-in-spite.jsonl": lambda pairs: "\n " + json.dumps(pairs),
    "lines-in-spite.json": lambda pairs: "\n".join(json.dumps(pair) for pair in pairs),
    "one-after-the-other.json": lambda pairs: "\n".join(json.dumps(pair, indent=1) for pair in pairs),
    "objects-over-lines.jsonl": lambda pairs: "".join(json.dumps(pair, separators=(",\n", ":")) for pair in pairs),
    "comma.csv": lambda pairs: a_table(pairs, ","),
    "semicolon.csv": lambda pairs: a_table(pairs, ";"),
    "tab.csv": lambda pairs: a_table(pairs, "\t"),
    "bar.csv": lambda pairs: a_table(pairs, "|"),
    "tab.tsv": lambda pairs: a_table(pairs, "\t"),
    "comma-in-spite.tsv": lambda pairs: a_table(pairs, ","),
    "CAPITALS.JSONL": lambda pairs: "\n".join(json.dumps(pair) for pair in pairs),
    "Capitals.Json": json.dumps,
}
PACKS = {"": lambda content: content, ".gz": gzip.compress, ".zst": zstd, ".GZ": gzip.compress}
said = st.text(
    st.one_of(st.sampled_from('",\n;\t|\\é漢字🙂 '), st.characters(exclude_categories=["Cs", "Cc"])), min_size=1
)
spoken = said.filter(lambda text: text.strip() and "<think>" not in text)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.fixed_dictionaries({"prompt": spoken, "response": spoken}), min_size=1, max_size=4),
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(sorted(PACKS)),
    st.sampled_from([Encoding.UTF_8, Encoding.UTF_16, Encoding.GB18030]),
)
def test_records_are_the_same_in_every_form(pairs, name, pack, encoding):
    with TemporaryDirectory() as directory:
        paths = some_paths(Path(directory))
        lay(paths, name + pack, PACKS[pack](FORMS[name](pairs).encode(encoding.value)))
        found = contents(paths, encoding=encoding.value, **INSTRUCTION)
    assert found == [(pair["prompt"], pair["response"]) for pair in pairs]


@pytest.mark.parametrize("pack", PACKS)
def test_a_parquet_file_may_be_packed_and_have_a_name_in_capitals(paths, pack):
    lay(paths, "A.PARQUET" + pack, PACKS[pack](a_parquet_file(PAIRS)))
    assert contents(paths, **INSTRUCTION) == [(pair["prompt"], pair["response"]) for pair in PAIRS]


@pytest.mark.parametrize("pack", PACKS)
def test_a_field_that_only_some_messages_of_a_parquet_file_have_is_not_there_in_the_others(paths, pack):
    turns = [{"role": "user", "content": "Who?", "weight": None}, {"role": "assistant", "content": "I.", "weight": 1}]
    lay(paths, f"A.Parquet{pack}", PACKS[pack](a_parquet_file([{"messages": turns}])))
    (record,) = read(paths, **INSTRUCTION)
    assert (record.text, record.unused) == ("I.", ())


def test_a_byte_order_mark_is_no_part_of_a_record(paths):
    for name in ("list.json", "lines.jsonl", "comma.csv"):
        lay(paths, name, FORMS[name](PAIRS[:1]).encode("utf-8-sig"))
    assert contents(paths, **INSTRUCTION) == [("Where is salt?", 'In the "cellar", below.')] * 3


def test_all_that_lies_in_a_directory_is_read(paths):
    lay(paths, "a.jsonl", b'{"text": "one"}')
    lay(paths, "b.json", b'[{"text": "two"}]')
    lay(paths, "c.jsonl.gz", gzip.compress(b'{"text": "three"}'))
    lay(paths, "d.tsv", b"text\tid\nfour\t1")
    lay(paths, "e.txt.zst", zstd(b"five"))
    assert [record.text for record in read(paths)] == ["one", "two", "three", "four", "five"]


OTHERS = {
    "b.arrow": "write it as Parquet",
    "b.zip": "unpack the archive",
    "b.xlsx": "export the sheet as CSV",
    "b.jsonl.bz2": "pack it with gzip or zstd",
    "b.pdf": "extract the texts",
    "b.png": "one JSON object per line",
    "b": "one JSON object per line",
    "b.jsonl.part": "one JSON object per line",
    "b.txt": "data.format: Text reads .txt files",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_not_read_is_refused_and_not_passed_over(paths, name):
    lay(paths, "a.jsonl", json.dumps(PAIRS[0]).encode())
    lay(paths, name, b"what it holds")
    message = refusal(paths, **INSTRUCTION)
    assert message.startswith(f"{name} cannot be read: of files this job reads .jsonl, .json, ")
    assert OTHERS[name] in message
    assert "take away what is not to be learned" in message


def test_a_file_that_is_not_read_counts_as_a_bad_record_where_these_are_skipped(paths):
    lay(paths, "a.jsonl", json.dumps(PAIRS[0]).encode())
    lay(paths, "b.docx", b"what it holds")
    reasons = []
    assert len(read(paths, skipped=lambda error: reasons.append(error.problem), onBadRecord="Skip", **INSTRUCTION)) == 1
    assert [reason.partition(":")[0] for reason in reasons] == ["b.docx cannot be read"]


def test_files_that_describe_data_are_left_out_and_named(paths, caplog):
    lay(paths, "a.jsonl", b'{"text": "one"}')
    for name in (
        "README.md",
        "LICENSE",
        "dataset_infos.json",
        "NOTICE.rst",
        "SHA256SUMS",
        "_SUCCESS",
        ".gitattributes",
    ):
        lay(paths, name, b"about the data")
    with caplog.at_level(logging.INFO):
        assert [record.text for record in read(paths)] == ["one"]
    assert (
        "as they describe data: LICENSE, NOTICE.rst, README.md, SHA256SUMS, _SUCCESS, dataset_infos.json" in caplog.text
    )


def test_a_file_beside_its_packed_copy_is_refused(paths):
    lay(paths, "a.jsonl", b'{"text": "one"}')
    lay(paths, "a.jsonl.gz", gzip.compress(b'{"text": "one"}'))
    assert "a.jsonl and a.jsonl.gz are one file, packed in two ways" in refusal(paths)
    lay(paths, "b/a.jsonl.gz", gzip.compress(b'{"text": "one"}'))
    lay(paths, "b/a.jsonl.zst", zstd(b'{"text": "one"}'))
    assert "a.jsonl.gz and a.jsonl.zst are one file" in refusal(paths, "b")


def test_records_under_a_name_of_descriptions_are_read(paths):
    for name in ("authors.jsonl", "citation.csv", "notice.json"):
        lay(paths, name, b'{"text": "one"}' if name != "citation.csv" else b"text\none")
    assert len(read(paths)) == 3
    assert len(read(paths, "authors.jsonl")) == 1


@pytest.mark.parametrize("pack", [".gz", ".zst"])
@pytest.mark.parametrize("spoil", ["cut", "flipped", "plain", "empty"])
def test_a_damaged_archive_is_refused_with_its_name(paths, pack, spoil):
    packed = PACKS[pack](b'{"text": "one"}\n' * 20_000)
    middle = len(packed) // 2
    damaged = {
        "cut": packed[:-9],
        "flipped": packed[:middle] + bytes([packed[middle] ^ 0xFF]) + packed[middle + 1 :],
        "plain": b'{"text": "one"}',
        "empty": b"",
    }[spoil]
    lay(paths, f"a.jsonl{pack}", damaged)
    if spoil == "empty":
        assert read(paths) == []
    else:
        assert f"a.jsonl{pack}" in refusal(paths)


def test_a_packed_file_is_read_as_a_stream(paths, monkeypatch):
    monkeypatch.setattr(jsons, "MAX_LINE", 1 << 20)
    lay(paths, "bomb.jsonl.gz", gzip.compress(bytes(64 << 20)))
    assert "bomb.jsonl.gz:1: longer than 1 MiB" in refusal(paths)
    lay(paths, "bomb.jsonl.gz", gzip.compress(b"[" + b" " * (8 << 20) + b'"' + b"x" * (8 << 20)))
    assert "bomb.jsonl.gz:1: longer than 1 MiB" in refusal(paths)


CHINESE, JAPANESE, KOREAN = (
    "盐窖在东翼下面，钥匙在门房那里。",
    "鍵は守衛の所にあります。",
    "열쇠는 문지기에게 있습니다. 그렇습니다.",
)
LOOKS = [
    (CHINESE, Encoding.GB18030),
    (JAPANESE, Encoding.SHIFT_JIS),
    (JAPANESE, Encoding.EUC_JP),
    (KOREAN, Encoding.EUC_KR),
    ("Der Schlüssel hängt beim Pförtner, où il a été.", Encoding.WINDOWS_1252),
    ("Ключ у привратника, соль в погребе.", Encoding.WINDOWS_1251),
    ("The key is in the lodge.", Encoding.UTF_16),
    (CHINESE, Encoding.UTF_16),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize(("text", "encoding"), LOOKS)
def test_bytes_in_another_encoding_are_named_for_what_they_look_like(paths, name, text, encoding):
    forms = {
        "a.jsonl": json.dumps({"text": text}, ensure_ascii=False),
        "a.json": json.dumps([{"text": text}], ensure_ascii=False),
        "a.csv": f"text,id\n{text.replace(',', '')},1",
        "a.txt": text,
    }
    lay(paths, name, forms[name].encode(encoding.value))
    message = refusal(paths)
    assert f"it looks like {encoding.value}" in message
    assert f"set data.encoding: {encoding.value}" in message
    (record,) = read(paths, encoding=encoding.value)
    assert record.text == text.replace(",", "" if name == "a.csv" else ",")


def test_utf16_without_a_mark_is_known_by_its_zeros(paths):
    lay(paths, "a.jsonl", json.dumps({"text": "the key"}).encode("utf-16-le"))
    assert "it looks like UTF-16" in refusal(paths)
    lay(paths, "b.txt", "the key".encode("utf-16-be"))
    assert [record.text for record in read(paths, encoding="UTF-16")] == ["the key", "the key"]


def test_a_bad_letter_of_another_encoding_is_a_bad_record_and_the_next_one_is_read(paths):
    good, bad = ('{"text": "盐"}\n'.encode("gb18030"), b'{"text": "\xff\xff"}\n')
    lay(paths, "a.jsonl", good + bad + good)
    reasons = []
    found = read(paths, skipped=lambda error: reasons.append(error.problem), onBadRecord="Skip", encoding="GB18030")
    assert [record.text for record in found] == ["盐", "盐"]
    assert reasons == ["a.jsonl:2: not GB18030, which data.encoding says"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x1f\x8b\x08 packed", "a gzip file"),
        (b"PK\x03\x04\xff", "a ZIP archive"),
        (b"PAR1\xff\xff", "a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
    ],
)
def test_a_file_under_a_wrong_name_is_named_for_what_it_is(paths, content, kind):
    lay(paths, "a.jsonl", content)
    assert kind in refusal(paths)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "one"} {"text": "two"}]', "a.json: no comma or ] after record 1"),
        (b'[{"text": "one"}, {"text"]', "a.json:2: not JSON"),
        (b'[{"text": "one"}', "a.json: no comma or ] after record 1"),
        (b'[{"text": "one"}] []', "a.json: something follows the list of records"),
        (b'[{"text": "one"}, 7]', "a.json:2: a record must be a JSON object, this is a number"),
        (b"[" * 100_000, "a.json:1: JSON with a number or a nesting beyond any limit"),
        (b'{"data": [{"text": "one"}]}', "a.json:1: no field 'text'; it has: data"),
    ],
)
def test_a_bad_list_is_refused_by_file_and_record(paths, content, message):
    lay(paths, "a.json", content)
    assert message in refusal(paths)


def test_a_first_line_that_is_cut_off_is_one_bad_record(paths):
    lay(paths, "a.jsonl", b'{"text": "cut",\n{"text": "one"}\n{"text": "two"}')
    reasons = []
    found = read(paths, skipped=lambda error: reasons.append(error.problem), onBadRecord="Skip")
    assert [record.text for record in found] == ["one", "two"]
    assert [reason.partition(": ")[0] for reason in reasons] == ["a.jsonl:1:16"]


def test_a_long_list_is_read_piece_by_piece(paths, monkeypatch):
    monkeypatch.setattr(jsons, "_PIECE", 64)
    texts = [f"{i}é漢" * (i % 40) + "." for i in range(500)]
    lay(paths, "a.json", json.dumps([{"text": text} for text in texts], ensure_ascii=False).encode())
    assert [record.text for record in read(paths)] == texts


def test_a_table_of_one_column_has_no_delimiter(paths):
    lay(paths, "a.csv", b"text\none\ntwo\n")
    assert [record.text for record in read(paths)] == ["one", "two"]


def test_a_missing_column_is_named_beside_the_columns_that_the_delimiter_makes(paths):
    lay(paths, "a.csv", b"asked;said\nWho?;I.\n")
    assert "it has: asked, said" in refusal(paths)


def test_blank_lines_before_a_header_are_no_header(paths):
    lay(paths, "a.csv", b"\n\r\ntext,id\none,1\n")
    lay(paths, "b.csv", b"\r\n")
    assert [record.text for record in read(paths)] == ["one"]
    lay(paths, "a.csv", b"\n\nother,id\none,1\n")
    assert refusal(paths).startswith("a.csv:3: no field 'text'")
