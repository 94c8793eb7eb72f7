"""A volume as a job seals it has no leak, and each kind of leak that is planted in it is found."""

import base64
import errno
import os
import random
import shutil
import socket
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dstj.leaks.look
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.vault import Context, Purpose
from dstj.leaks.look import Look, Place
from dstj.leaks.needles import needles_of_keys, needles_of_words
from dstj.leaks.places import BESIDE, VOLUME_OTHERS, volume
from dstj.leaks.tree import entries
from support.builders.vault import a_vault

CANARY = "the canary of room 4711"
PIECE = 2048
EVENT = b'{"event": "step", "time": 1.0, "loss": 2.5}\n'
RANK = "checkpoints/step-00000010/rank-00000.safetensors"
SEALED = {
    "checkpoints/HEAD.json": Context(),
    "checkpoints/step-00000010/manifest.json": Context(10),
    RANK: Context(10, 0),
    "prepared/0a1b/tokens.bin": Context(),
    "prepared/runs/uid-1/pointer.json": Context(),
    "export/tiny/model.safetensors": Context(),
    "export/tiny/adapter/config.json": Context(),
}
PURPOSES = {"checkpoints": Purpose.CHECKPOINT, "prepared": Purpose.DATA, "export": Purpose.EXPORT}


def put(root, name, content=b""):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def a_volume(root):
    """The work volume of a sealed job, and the vaults that open it."""
    vaults = {purpose: a_vault(root, purpose=purpose) for purpose in Purpose}
    for name, context in SEALED.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        vaults[PURPOSES[name.split("/")[0]]].write(root / name, f"{CANARY} {'x' * 3 * PIECE}".encode(), context)
    put(root, "logs/events.jsonl", EVENT * 3)
    put(
        root,
        "logs/tensorboard/events.out.tfevents.1.host",
        b"\x18\0\0\0\0\0\0\0crcc\t\0\0\0\0\0\0\0\0\x1a\rbrain.Event:2",
    )
    return vaults


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "words"
    file.write_text(f"{CANARY}\n")
    return needles_of_words(file)


@pytest.fixture(scope="module")
def one_volume(tmp_path_factory):
    root = tmp_path_factory.mktemp("one") / "volume"
    a_volume(root)
    return root


@pytest.fixture
def work(tmp_path, one_volume):
    return shutil.copytree(one_volume, tmp_path / "volume")


@pytest.fixture(scope="module")
def look(words):
    """What is found on a volume: where, at which byte, and what."""

    def run(root, vaults=None, rules=None, needles=words, only=""):
        place = Place(root, rules or volume(), VOLUME_OTHERS, vaults or {})
        listed = [entry for entry in entries(root) if only in ("", entry.name)]
        each = Look(needles)
        with mock.patch.object(dstj.leaks.look, "CHUNK_BYTES", PIECE):  # so that borders are many
            found = [f for entry in listed for f in each.at(place, entry, lambda size: None)]
        assert CANARY not in str(found), "a finding tells a private word"
        return [(f.path.removeprefix(f"{root}/"), f.offset, f.what) for f in found]

    return run


def test_a_volume_as_its_job_left_it_has_no_leak(work, look):
    assert look(work) == []
    assert look(work, {purpose: a_vault(work, purpose=purpose) for purpose in Purpose}) == []


def test_what_was_looked_at_is_counted(work, words):
    vaults = {purpose: a_vault(work, purpose=purpose) for purpose in Purpose}
    each = Look(words)
    place = Place(work, volume(), vaults=vaults)
    assert not [f for entry in entries(work) for f in each.at(place, entry, lambda size: None)]
    assert each.sealed.files == each.authentic.files == len(SEALED)
    assert {rule.glob for _, rule in each.on_purpose} == {
        "keyring.json", "logs/events.jsonl", "logs/tensorboard/events.out.tfevents.*",
    }  # fmt: skip


CLEAR = {
    "safetensors": (b'\x40\0\0\0\0\0\0\0{"w": {}}' + bytes(80), "safetensors"),
    "GGUF": (b"GGUF\x03\0\0\0", "GGUF model"),
    "Parquet": (b"PAR1\x15\x04", "Parquet"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "PNG"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
    "zip": (b"PK\x03\x04\x14\0", "zip"),
    "gzip": (b"\x1f\x8b\x08\0", "gzip"),
    "pickle": (b"\x80\x04\x95\x01", "pickle"),
    "JSON Lines": (b'{"text": "words"}\n', "JSON"),
    "text": (b"plain words", "text"),
    "something": (b"\0\1\2\3", "bytes of no known format"),
}
PLACES = ("prepared/0a1b/train.x", "export/tiny/a.x", "checkpoints/step-00000010/a.x", "logs/more.x", "core")


@pytest.mark.parametrize(
    ("place", "content", "what"),
    [*((PLACES[0], *each) for each in CLEAR.values()), *((place, *CLEAR["text"]) for place in PLACES[1:])],
)
def test_a_clear_file_where_a_sealed_job_has_none_is_found(work, look, place, content, what):
    put(work, place, content)
    ((path, offset, found),) = [finding for finding in look(work) if "inside" not in finding[2]]
    assert (path, offset) == (place, 0)
    assert found.startswith(what)


@pytest.mark.parametrize("place", ["keyring.json", "logs/events.jsonl", "logs/tensorboard/events.out.tfevents.2.host"])
@pytest.mark.parametrize(("content", "what"), CLEAR.values(), ids=CLEAR)
def test_another_format_under_a_name_that_may_be_in_the_clear_is_found(work, look, place, content, what):
    put(work, place, content)
    assert any(found.startswith(what) for path, _, found in look(work) if path == place)


@pytest.mark.parametrize(("content", "what"), CLEAR.values(), ids=CLEAR)
def test_a_clear_file_that_is_called_sealed_is_found(work, look, content, what):
    put(work, "export/tiny/b.sealed", content + bytes(100))
    assert next(path for path, *_ in look(work)) == "export/tiny/b.sealed"


@pytest.mark.parametrize(("content", "what"), [*CLEAR.values()][:5], ids=[*CLEAR][:5])
def test_a_clear_file_behind_a_header_of_a_sealed_one_is_found(work, look, content, what):
    put(work, "export/tiny/b.sealed", b"\x28" + os.urandom(39) + content + os.urandom(4000))
    assert what in [found for path, _, found in look(work) if path == "export/tiny/b.sealed"]


def test_a_line_in_the_events_that_is_none_is_found(work, look):
    put(work, "logs/events.jsonl", EVENT * 2 + b'{"text": "a record"}\n' + EVENT)
    assert look(work) == [("logs/events.jsonl", 2 * len(EVENT), "a line that is no event")]


def test_an_event_that_a_crash_cut_is_an_event(work, look):
    for cut in range(1, len(EVENT), 9):
        put(work, "logs/events.jsonl", EVENT + EVENT[:cut])
        assert look(work) == []


def test_clear_bytes_in_a_sealed_file_are_found(work, look):
    path = work / f"{RANK}.sealed"
    content = bytearray(path.read_bytes())
    content[1024:2048] = bytes(1024)
    path.write_bytes(content)
    assert look(work) == [(f"{RANK}.sealed", 1024, "1 KiB that are not random")]


def test_a_file_that_was_cut_is_found_unless_it_is_being_written(work, look):
    content = (work / f"{RANK}.sealed").read_bytes()[:50]
    put(work, "checkpoints/step-00000020.partial-1-abc/rank-00000.safetensors.sealed", content)
    put(work, "checkpoints/HEAD.json.sealed.partial-abc", content)
    assert look(work) == []
    put(work, f"{RANK}.sealed", content)
    assert look(work) == [(f"{RANK}.sealed", 0, "a sealed file that was cut or lengthened")]


@pytest.mark.parametrize("name", SEALED)
def test_with_the_key_a_changed_byte_is_found(work, look, name):
    path = work / f"{name}.sealed"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    vaults = {purpose: a_vault(work, purpose=purpose) for purpose in Purpose}
    assert look(work, vaults) == [(f"{name}.sealed", None, "a sealed file that does not authenticate")]


def test_with_the_key_a_moved_file_is_found(work, look):
    (work / f"{RANK}.sealed").rename(work / "export/tiny/rank-00000.safetensors.sealed")
    vaults = {purpose: a_vault(work, purpose=purpose) for purpose in Purpose}
    assert [what for *_, what in look(work, vaults)] == ["a sealed file that does not authenticate"]


FORMS = {
    "itself": CANARY.encode(),
    "UTF-16": CANARY.encode("utf-16-le"),
    "hex": CANARY.encode().hex().encode(),
    "base64": base64.b64encode(CANARY.encode()),
}
FILES = (
    f"{RANK}.sealed",
    "prepared/0a1b/tokens.bin.sealed",
    "export/tiny/model.safetensors.sealed",
    "logs/events.jsonl",
)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@settings(max_examples=40)
@given(name=st.sampled_from(FILES), at=st.integers(0, 3 * PIECE))
@example(name=FILES[0], at=PIECE - 5)
@example(name=FILES[3], at=2 * PIECE - 60)
def test_a_word_is_found_at_any_offset_of_any_file(one_volume, look, form, name, at):
    path = one_volume / name
    whole = path.read_bytes()
    at %= len(whole)
    try:
        path.write_bytes(whole[:at] + form + whole[at + len(form) :])
        found = look(one_volume, only=name)
    finally:
        path.write_bytes(whole)
    assert (name, at) in [(path, offset) for path, offset, what in found if what.startswith("word 1")]


@settings(max_examples=40)
@given(size=st.integers(0, 3 * PIECE), seed=st.integers(0, 2**32))
def test_sealed_files_of_any_size_raise_no_alarm(tmp_path_factory, words, size, seed):
    root = tmp_path_factory.mktemp("sealed")
    vault = a_vault(root, purpose=Purpose.DATA)
    vault.write(root / "tokens", random.Random(seed).randbytes(size))
    assert not [f for entry in entries(root) for f in Look(words).at(Place(root, volume()), entry, lambda size: None)]


@pytest.mark.parametrize("name", ["prepared/{}/a.sealed", "{}", "logs/{}.jsonl", "export/{}/adapter/b.sealed"])
def test_a_word_in_a_name_is_found_and_not_repeated(work, look, name):
    put(work, name.format(CANARY))
    assert "word 1" in [what for *_, what in look(work)]


def test_a_word_in_the_name_of_an_empty_directory_or_a_links_target_is_found(work, look):
    (work / "prepared" / CANARY).mkdir()
    (work / "export/link").symlink_to(f"/elsewhere/{CANARY}")
    assert [what for *_, what in look(work)].count("word 1") == 2


def test_keys_in_the_clear_are_found(work, look):
    key = Key(bytes(range(1, 33)))
    put(work, "logs/events.jsonl", EVENT + b'{"event": "oops", "key": "' + key.material.hex().encode() + b'"}\n')
    assert look(work, needles=needles_of_keys([key], "the data key")) == [
        ("logs/events.jsonl", len(EVENT) + 26, f"the data key {key.id} in hex")
    ]


def test_links_and_what_is_no_file_are_named_and_never_opened(work, look, tmp_path):
    put(tmp_path, "outside", CANARY.encode())
    (work / "export/tiny/link").symlink_to(tmp_path / "outside")
    (work / "export/directory").symlink_to(tmp_path)
    os.mkfifo(work / "keyring.json.partial-1")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(work / "socket"))
        assert {(path, what) for path, _, what in look(work)} == {
            ("export/tiny/link", "a link"),
            ("export/directory", "a link"),
            ("keyring.json.partial-1", "a FIFO"),
            ("socket", "a socket"),
        }


def test_a_directory_that_cannot_be_read_is_named_unless_it_is_the_file_systems(work, look):
    refused = PermissionError(errno.EACCES, "Permission denied")
    for name in ("export/closed", "lost+found"):
        (work / name).mkdir()
    listed = Path.iterdir

    def iterdir(path):
        if path.name in ("closed", "lost+found"):
            raise refused
        return listed(path)

    with mock.patch.object(Path, "iterdir", iterdir):
        assert look(work) == [("export/closed", None, "a place that cannot be read (permission denied)")]


def test_a_file_that_becomes_a_link_or_a_fifo_under_our_eyes_is_not_read(work, words, tmp_path):
    put(tmp_path, "outside", CANARY.encode())
    first, second = put(work, "export/first", b"x"), put(work, "export/second.sealed", b"x")
    listed = [entry for entry in entries(work) if entry.path in (first, second)]
    for path in (first, second):
        path.unlink()
    first.symlink_to(tmp_path / "outside")
    os.mkfifo(second)
    found = [f for entry in listed for f in Look(words).at(Place(work, volume()), entry, lambda size: None)]
    assert [f.what for f in found] == ["a file that was not read"] * 2


def test_a_file_that_goes_under_our_eyes_is_no_leak(work, words):
    path = put(work, "export/first", b"x")
    listed = [entry for entry in entries(work) if entry.path == path]
    path.unlink()
    assert not [f for entry in listed for f in Look(words).at(Place(work, volume()), entry, lambda size: None)]


def test_hundreds_of_nested_directories_are_looked_through(work, look):
    here = f"{work}"
    for _ in range(300):
        here += "/d"
        os.mkdir(here)  # noqa: PTH102 `pathlib` takes a stack frame for each of them
    put(Path(here), "leak", b"words")
    assert [what for *_, what in look(work)] == ["text"]


@pytest.mark.parametrize("part", ["data", "export"])
def test_what_the_job_says_is_not_sealed_may_be_in_the_clear_but_for_words(work, look, part):
    place = {"data": "prepared", "export": "export"}[part]
    put(work, f"{place}/new/deeper/rows.json", b'{"text": "words"}')
    rules = volume(**{f"{part}_sealed": False})
    assert look(work, rules=rules) == []
    put(work, f"{place}/new/deeper/rows.json", f'{{"text": "{CANARY}"}}'.encode())
    assert [what for *_, what in look(work, rules=rules)] == ["word 1"]


def test_control_characters_in_a_name_are_shown_and_not_sent_to_the_terminal(work, look):
    put(work, "export/\x1b[2Jname\n", b"words")
    ((path, *_),) = look(work)
    assert path.isprintable()
    assert "\\x1b[2Jname\\n" in path


def test_a_single_file_is_looked_at_by_itself(tmp_path: Path, look):
    path = put(tmp_path, "pod.log", f"INFO: {CANARY}\n".encode())
    assert [(offset, what) for _, offset, what in look(path, rules=BESIDE)] == [(6, "word 1")]
