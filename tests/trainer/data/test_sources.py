import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.data.sources import Source, Split
from deepseek_trainer.tasks.language.reading import reading
from deepseek_trainer.tasks.language.records import Record
from support.builders.data import CLAIM, a_data_spec, questions, some_paths, texts, write_jsonl, write_text


@pytest.fixture
def paths(tmp_path):
    return some_paths(tmp_path)


def found(paths, path="", claim=CLAIM, **data):
    spec = a_data_spec(**data)
    return Source.find(VolumePath(claim_name=claim, path=path), spec, paths, reading(spec))


def refusal(paths, path="", **data):
    """The one line that a person gets to read."""
    with pytest.raises(DataError) as error:
        list(found(paths, path, **data).records())
    assert error.value.code == 65
    assert "\n" not in str(error.value)
    return str(error.value)


INSTRUCTION = {"format": "Instruction"}


def test_directories_are_read_recursively_in_name_order(paths):
    write_text(paths, "b.txt", "second")
    write_jsonl(paths, "a/z.jsonl", [{"text": "first"}])
    write_text(paths, "c/d/e.txt", "third")
    write_text(paths, "c/notes.md", "not read")
    write_text(paths, ".hidden/x.txt", "not read")
    assert [(record.text, record.source, record.line) for record in found(paths).records()] == [
        ("first", "a/z.jsonl", 1),
        ("second", "b.txt", 1),
        ("third", "c/d/e.txt", 1),
    ]


def test_one_file_can_be_named(paths):
    write_text(paths, "a.txt", "no")
    write_text(paths, "b.txt", "yes")
    assert [record.text for record in found(paths, "b.txt").records()] == ["yes"]


def test_a_txt_file_is_one_record_of_many_lines(paths):
    write_text(paths, "a.txt", "one\ntwo\n")
    assert list(found(paths).records()) == [Record(None, "one\ntwo\n", "a.txt", 1)]


def test_instruction_fields_are_named_by_the_job(paths):
    write_jsonl(paths, "a.jsonl", [{"q": "why?", "a": "so.", "extra": 1}])
    source = found(paths, **INSTRUCTION, promptField="q", responseField="a")
    assert list(source.records()) == [Record("why?", "so.", "a.jsonl", 1)]


def test_must_contain_is_a_string_or_a_list_of_strings(paths):
    record = questions(1)[0]
    write_jsonl(paths, "a.jsonl", [record | {"mustContain": "kind"}, record | {"mustContain": ["a", "b"]}, record])
    assert [record.must_contain for record in found(paths, **INSTRUCTION).records()] == [("kind",), ("a", "b"), ()]


def test_blank_lines_and_blank_texts_are_left_out_and_lines_still_count(paths):
    write_text(paths, "a.jsonl", '\n{"text": " "}\n\n{"text": "here"}')
    write_text(paths, "b.txt", " \n")
    assert list(found(paths).records()) == [Record(None, "here", "a.jsonl", 4)]


def test_a_byte_order_mark_is_not_text(paths):
    write_text(paths, "a.txt", "\ufeffhello")
    write_text(paths, "b.jsonl", '\ufeff{"text": "hello"}')
    assert [record.text for record in found(paths).records()] == ["hello", "hello"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 1, }', "a.jsonl:2:13: not JSON: "),
        ('{"text": "x"', "a.jsonl:2:13: not JSON: expecting ',' delimiter"),
        ("[1]", "a.jsonl:2: a record must be a JSON object, this is a list"),
        ("null", "a record must be a JSON object, this is null"),
        ("[" * 100_000, "a.jsonl:2: "),
        ('{"txt": "x", "id": 3}', "a.jsonl:2: no field 'text', did you mean 'txt'; it has: txt, id"),
        ('{"body": "x"}', "no field 'text'; it has: body (hint: set data.textField to the field's name)"),
        ("{}", "a.jsonl:2: no field 'text'; it has: none"),
        ('{"text": 7}', "a.jsonl:2: field 'text' must be a string, this is a number"),
        ('{"text": null}', "a.jsonl:2: field 'text' must be a string, this is null"),
        ('{"text": {"a": 1}}', "must be a string, this is an object"),
        (r'{"text": "\ud800"}', "a.jsonl:2: field 'text' has half a surrogate pair"),
    ],
)
def test_a_bad_text_record_is_refused_by_file_line_and_fields(paths, line, message):
    write_text(paths, "a.jsonl", f'{{"text": "good"}}\n{line}\n')
    assert message in refusal(paths)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "x"}, "a.jsonl:1: no field 'response'; it has: prompt (hint: set data.responseField"),
        ({"promt": "x", "response": "y"}, "no field 'prompt', did you mean 'promt'"),
        ({"prompt": " ", "response": "y"}, "a.jsonl:1: field 'prompt' is empty"),
        ({"prompt": "x", "response": ""}, "a.jsonl:1: field 'response' is empty"),
        ({"prompt": ["x"], "response": "y"}, "field 'prompt' must be a string, this is a list"),
        ({"prompt": "x", "response": True}, "field 'response' must be a string, this is a boolean"),
        (
            {"prompt": "x", "response": "y", "mustContain": 1},
            "field 'mustContain' must be a string or a list of strings",
        ),
        (
            {"prompt": "x", "response": "y", "mustContain": [1]},
            "field 'mustContain' must be a string, this is a number",
        ),
    ],
)
def test_a_bad_instruction_record_is_refused_by_file_line_and_fields(paths, record, message):
    write_jsonl(paths, "a.jsonl", [record])
    assert message in refusal(paths, **INSTRUCTION)


PREFERENCE = {"format": "Preference"}
PAIR = {"prompt": "why?", "chosen": "so.", "rejected": "just so."}
TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "why?"},
]


def test_a_pair_has_a_prompt_or_the_messages_before_its_two_answers(paths):
    write_jsonl(paths, "a.jsonl", [PAIR | {"mustContain": "so"}, {"messages": TALK, "chosen": "so.", "rejected": "no"}])
    first, second = found(paths, **PREFERENCE).records()
    assert (first.prompt, first.text, first.rejected, first.must_contain) == ("why?", "so.", "just so.", ("so",))
    assert (second.prompt[-1].content, second.text, second.rejected) == ("why?", "so.", "no")
    assert [(side.prompt, side.text, side.rejected) for side in first.sides()] == [
        ("why?", "so.", None),
        ("why?", "just so.", None),
    ]


def test_fields_of_a_pair_are_named_by_the_job(paths):
    write_jsonl(paths, "a.jsonl", [{"q": "why?", "good": "so.", "bad": "no", "prompt": 1}])
    names = {"promptField": "q", "chosenField": "good", "rejectedField": "bad"}
    (record,) = found(paths, **PREFERENCE, **names).records()
    assert list(record.texts()) == ["why?", "so.", "no"]


def test_which_answer_is_chosen_is_part_of_what_a_record_is(paths):
    other = PAIR | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    write_jsonl(paths, "a.jsonl", [PAIR, other, PAIR, PAIR | {"rejected": "no"}])
    keys = [record.key() for record in found(paths, **PREFERENCE).records()]
    assert keys[0] == keys[2]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            PAIR | {"rejected": "so."},
            "a.jsonl:1: fields 'chosen' and 'rejected' are equal: none is preferred (hint:",
        ),
        ({"prompt": "x", "chosen": "y"}, "no field 'rejected'; it has: prompt, chosen (hint: set data.rejectedField"),
        ({"prompt": "x", "choosen": "y", "rejected": "z"}, "no field 'chosen', did you mean 'choosen'"),
        ({"chosen": "y", "rejected": "z"}, "a.jsonl:1: no field 'prompt'"),
        (PAIR | {"chosen": " "}, "a.jsonl:1: field 'chosen' is empty: a Preference record needs a prompt and two"),
        (PAIR | {"rejected": ["x"]}, "field 'rejected' must be a string, this is a list"),
        (PAIR | {"messages": TALK[:2]}, "the last message is the assistant's: before two answers the user speaks"),
        (PAIR | {"messages": TALK[1:]}, "message 1 is the assistant's, it must be the user's"),
        (PAIR | {"messages": []}, "field 'messages' is an empty list"),
    ],
)
def test_a_bad_pair_is_refused_by_file_line_and_fields(paths, record, message):
    write_jsonl(paths, "a.jsonl", [record])
    assert message in refusal(paths, **PREFERENCE)


def test_messages_never_show_what_a_record_says(paths):
    write_jsonl(paths, "a.jsonl", [{"prompt": "top secret", "reply": "top secret"}])
    assert "secret" not in refusal(paths, **INSTRUCTION)


def test_a_file_that_is_not_utf8_is_refused_by_line_and_byte(paths):
    write_text(paths, "a.jsonl", "").write_bytes(b'{"text": "good"}\n{"text": "\xff"}')
    assert "a.jsonl:2: byte 11 is not UTF-8" in refusal(paths)
    write_text(paths, "a.jsonl", "").write_bytes(b"")
    write_text(paths, "b.txt", "").write_bytes(b"ab\xe9")
    assert "b.txt: byte 3 is not UTF-8" in refusal(paths)


def test_a_missing_path_names_claim_and_what_lies_beside_it(paths):
    write_text(paths, "news/train.jsonl", "")
    write_text(paths, "news/other.jsonl", "")
    message = refusal(paths, "news/trian.jsonl")
    assert f"no 'news/trian.jsonl' in volume 'corpus' ({paths.claim(CLAIM)}/news/trian.jsonl)" in message
    assert "has other.jsonl, train.jsonl, did you mean 'train.jsonl'" in message


def test_a_missing_directory_names_the_nearest_one_that_exists(paths):
    write_text(paths, "news/train.jsonl", "")
    assert f"{paths.claim(CLAIM)} has news, did you mean 'news'" in refusal(paths, "new/deep/train.jsonl")


def test_a_missing_claim_names_those_that_are_mounted(paths):
    message = refusal(paths, claim="corpsu")
    assert "no volume 'corpsu'" in message
    assert "did you mean 'corpus'" in message


def test_an_empty_directory_is_refused(paths):
    assert "no .jsonl, .json, .csv, .tsv, .parquet or .txt file for data.format Text" in refusal(paths)


def test_files_of_other_kinds_are_named(paths):
    write_text(paths, "a.docx", "")
    write_text(paths, "b.arrow", "")
    assert "found a.docx, b.arrow" in refusal(paths)


def test_txt_files_do_not_serve_as_instructions(paths):
    write_text(paths, "a.txt", "hello")
    assert "data.format: Text reads .txt files" in refusal(paths, **INSTRUCTION)


def test_a_link_out_of_the_volume_is_refused(paths, tmp_path):
    (tmp_path / "kek").write_text("not yours")
    (paths.claim(CLAIM) / "a.txt").symlink_to(tmp_path / "kek")
    assert "a.txt is a link that leads out of volume 'corpus'" in refusal(paths)


def test_a_link_inside_the_volume_is_followed(paths):
    write_text(paths, "a.txt", "hello")
    (paths.claim(CLAIM) / "b.txt").symlink_to("a.txt")
    assert len(list(found(paths).records())) == 2


NOT_READABLE = {
    "a link to nowhere": (errno.ENOENT, "no such file or directory"),
    "another user's file": (errno.EACCES, "permission denied"),
    "a link in a circle": (errno.ELOOP, "too many levels of symbolic links"),
}


def spoil(paths, monkeypatch, number, name="b.jsonl"):
    """A file that cannot be opened.  Mode bits do not hold for root: its open is refused by hand."""
    bad = paths.claim(CLAIM) / name
    if number in (errno.ENOENT, errno.ELOOP):
        bad.symlink_to("nowhere.jsonl" if number == errno.ENOENT else name)
        return
    bad.write_text('{"text": "never read"}\n')
    opened = os.open

    def refused(path, *how, **named):
        if Path(path).name == name:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *how, **named)

    monkeypatch.setattr(os, "open", refused)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt"])
@pytest.mark.parametrize("case", NOT_READABLE)
def test_a_file_that_cannot_be_opened_is_refused(paths, monkeypatch, case, suffix):
    number, why = NOT_READABLE[case]
    write_jsonl(paths, "a.jsonl", texts(2))
    spoil(paths, monkeypatch, number, f"b{suffix}")
    hint = "(hint: let the trainer's user read it, or take it away, or set data.onBadRecord: Skip)"
    message = f"b{suffix} cannot be read: {why} {hint}"
    assert refusal(paths) == message
    with pytest.raises(DataError) as error:
        found(paths).digest()
    assert str(error.value) == message


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt"])
@pytest.mark.parametrize("case", NOT_READABLE)
def test_a_file_that_cannot_be_opened_is_skipped_and_counted_where_the_job_says_so(paths, monkeypatch, case, suffix):
    write_jsonl(paths, "a.jsonl", texts(2))
    alone = found(paths, onBadRecord="Skip").digest()
    spoil(paths, monkeypatch, NOT_READABLE[case][0], f"b{suffix}")
    source, skipped = found(paths, onBadRecord="Skip"), []
    assert len(list(source.records(skipped.append))) == 2
    assert [str(error).partition(":")[0] for error in skipped] == [f"b{suffix} cannot be read"]
    assert source.digest() not in (alone, None)
    assert source.size_bytes() > 0


def test_a_directory_that_cannot_be_listed_is_refused(paths, monkeypatch):
    write_text(paths, "shut/a.txt", "hello")
    listed = Path.iterdir

    def refused(path):
        if path.name == "shut":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    assert refusal(paths, onBadRecord="Skip").endswith(
        "shut cannot be read: permission denied (hint: let the trainer's user read it, or take it away)"
    )


def test_directories_that_links_lead_to_in_circles_and_again_and_again_are_read_once(paths):
    write_text(paths, "0/a.txt", "first")
    for i in range(30):  # 2 ** 30 ways lead to the last one
        for name in ("left", "right"):
            directory = paths.claim(CLAIM) / str(i)
            directory.mkdir(exist_ok=True)
            (directory / name).symlink_to(f"../{i + 1}")
    write_text(paths, "30/b.txt", "last")
    (paths.claim(CLAIM) / "30" / "up").symlink_to("..")
    assert sorted(record.text for record in found(paths).records()) == ["first", "last"]


def test_the_files_of_a_directory_are_found_under_its_own_name_where_links_lead_to_it_as_well(paths):
    write_text(paths, "version-2/a.txt", "first")
    (paths.claim(CLAIM) / "latest").symlink_to("version-2")
    source = found(paths)
    assert [source.name_of(file) for file in source.files] == ["version-2/a.txt"]


@pytest.mark.parametrize("path", ["", "inside"])
def test_a_directory_outside_of_the_volume_is_not_entered(paths, tmp_path, path):
    (tmp_path / "outside" / "unreadable-name").mkdir(parents=True)
    write_text(paths, "a.txt", "first")
    (paths.claim(CLAIM) / "inside").symlink_to(tmp_path / "outside")
    assert "inside is a link that leads out of volume 'corpus'" in refusal(paths, path)


def test_links_that_lead_in_a_circle_or_out_are_refused(paths, tmp_path):
    (paths.claim(CLAIM) / "a.txt").symlink_to("a.txt")
    assert "a.txt cannot be read: too many levels of symbolic links" in refusal(paths)
    (paths.claim(CLAIM) / "a.txt").unlink()
    (paths.claim(CLAIM) / "a.txt").symlink_to(tmp_path / "nowhere")
    assert "a.txt is a link that leads out of volume 'corpus'" in refusal(paths)


def test_a_volume_that_fails_is_not_taken_for_a_bad_file(paths, monkeypatch):
    write_jsonl(paths, "a.jsonl", texts(2))
    spoil(paths, monkeypatch, errno.EIO)
    source = found(paths, onBadRecord="Skip")
    for read in (source.digest, lambda: list(source.records())):
        with pytest.raises(OSError, match="Input/output error"):
            read()


def test_digest_depends_on_names_and_contents_only(paths, tmp_path):
    write_jsonl(paths, "a/b.jsonl", texts(3))
    other = some_paths(tmp_path / "elsewhere")
    write_jsonl(other, "a/b.jsonl", texts(3))
    write_text(other, "a/ignored.md", "")
    assert found(paths).digest() == found(other).digest()
    write_jsonl(other, "a/b.jsonl", texts(4))
    changed = found(other).digest()
    (other.claim(CLAIM) / "a/b.jsonl").rename(other.claim(CLAIM) / "a/c.jsonl")
    assert len({found(paths).digest(), changed, found(other).digest()}) == 3


def some_records(*contents):
    return [Record(None, json.dumps(content), "a.jsonl", i) for i, content in enumerate(contents)]


@given(st.sets(st.integers(), min_size=2, max_size=40), st.floats(1e-9, 0.5))
def test_split_leaves_something_on_both_sides(contents, fraction):
    records = some_records(*contents)
    split = Split.of(records, fraction)
    assert {split.holds_out(record) for record in records} == {True, False}


def test_split_holds_out_about_the_fraction():
    records = some_records(*range(5000))
    split = Split.of(records, 0.1)
    assert 400 < sum(map(split.holds_out, records)) < 600


def test_split_depends_on_content_alone():
    records = some_records(*range(30))
    moved = [Record(None, record.text, "b.txt", 0) for record in reversed(records)]
    assert Split.of(records, 0.2) == Split.of(moved, 0.2)


def test_equal_records_are_on_the_same_side():
    records = some_records(1, 1, 1, 2)
    split = Split.of(records, 0.5)
    assert len({split.holds_out(record) for record in records[:3]}) == 1


@pytest.mark.parametrize(
    ("contents", "words"), [((), "no record"), ((1,), "only one record"), ((1, 1), "copies of it")]
)
def test_split_is_refused_without_two_different_records(contents, words):
    with pytest.raises(DataError, match=words):
        Split.of(some_records(*contents), 0.5)
