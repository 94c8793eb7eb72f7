"""Words are found in every spelling, at any offset, across the borders of pieces."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.keys import Key
from dstj.leaks.needles import Needle, Search, needles_of_keys, needles_of_words

WORD = "Möwe/47+11 Ümläut?"


def found_in(content, needles, piece=7):
    search = Search(needles)
    pieces = (content[start : start + piece] for start in range(0, len(content), piece))
    return [hit for each in pieces for hit in search.feed(each)]


@pytest.fixture
def needles_of(tmp_path):
    def of(*words):
        file = tmp_path / "words"
        file.write_text("\n".join(words) + "\n")
        return needles_of_words(file)

    return of


@given(
    before=st.binary(max_size=40),
    after=st.binary(max_size=20),
    piece=st.integers(1, 50),
    content=st.binary(min_size=1, max_size=30),
)
def test_a_needle_is_found_where_it_stands_first_whatever_the_pieces(before, after, piece, content):
    stream = before + content + after
    ((offset, needle),) = found_in(stream, [Needle(content, "it")], piece)
    assert (offset, needle.what) == (stream.index(content), "it")


@given(
    needles=st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=5, unique=True),
    stream=st.binary(max_size=60),
    piece=st.integers(1, 20),
)
def test_several_needles_are_found_as_if_each_were_sought_alone(needles, stream, piece):
    found = {needle.content: offset for offset, needle in found_in(stream, [Needle(n, "") for n in needles], piece)}
    assert found == {needle: stream.index(needle) for needle in needles if needle in stream}


SPELLINGS = {
    "as it is": WORD.encode(),
    "UTF-16 of Windows": WORD.encode("utf-16"),
    "UTF-16, big end first": WORD.encode("utf-16-be"),
    "letters taken apart": "Mo\u0308we/47+11 U\u0308mla\u0308ut?".encode(),
    "JSON": json.dumps({"name": WORD}).encode(),
    "repr": ascii(WORD).encode(),
    "URL": b"?q=M%C3%B6we%2F47%2B11%20%C3%9Cml%C3%A4ut%3F",
    "hex": WORD.encode().hex().encode(),
    "upper hex": WORD.encode().hex().upper().encode(),
    "hex of UTF-16": WORD.encode("utf-16-le").hex().encode(),
    "base64 of UTF-16": base64.b64encode(WORD.encode("utf-16-le")),
    "base64 for URLs": base64.urlsafe_b64encode(b"x" + WORD.encode()),
}


@pytest.mark.parametrize("content", SPELLINGS.values(), ids=SPELLINGS)
def test_a_word_is_found_in_every_spelling(needles_of, content):
    hits = found_in(b"before " + content + b" after", needles_of("something else", WORD))
    assert {needle.what.split(" in ")[0].split(" as ")[0] for _, needle in hits} == {"word 2"}


@given(before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_a_word_is_found_in_base64_of_anything_around_it(tmp_path_factory, before, after):
    file = tmp_path_factory.mktemp("words") / "words"
    file.write_text("a canary word\n")
    needles = needles_of_words(file)
    assert found_in(base64.b64encode(before + b"a canary word" + after), needles)
    assert found_in(base64.urlsafe_b64encode(before + b"a canary word" + after), needles)


def test_no_needle_shows_its_word(needles_of):
    assert not [needle for needle in needles_of("canary", "sparrow") if "canary" in needle.what]


def test_short_words_are_sought_as_they_are_and_only_their_long_spellings(needles_of):
    assert sorted(len(needle.content) for needle in needles_of("4711"))[:2] == [4, 8]


def test_keys_are_found_as_they_are_in_hex_and_in_base64():
    key = Key(bytes(range(32)))
    needles = needles_of_keys([key], "the key")
    for content in (key.material, key.material.hex().encode(), base64.b64encode(b"12" + key.material)):
        (hit, *_) = found_in(b"before" + content, needles)
        assert hit[1].what.startswith(f"the key {key.id}")


def test_words_are_lines_and_empty_lines_are_none(needles_of):
    assert {needle.what for needle in needles_of("", "  first  ", "", "second")} >= {"word 2", "word 4"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"abc\n", ":1: a word of fewer than 4 bytes"), (b"good\n\xff\xfe\n", "not UTF-8")],
)
def test_words_that_cannot_be_sought_are_refused_unseen(tmp_path, content, problem):
    (tmp_path / "words").write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as refused:
        needles_of_words(tmp_path / "words")
    assert "abc" not in refused.value.problem
