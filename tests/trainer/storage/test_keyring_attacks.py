"""What somebody who can write to the volume, and has no key, makes of a keyring: it does not open."""

import copy
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.keyring import KEYRING, Keyring, owner_of, read_keyring
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.rotation import grant, revoke, rotate, shred
from support.builders.keyrings import a_keyring, a_keyring_1, content_of, write_content
from support.builders.vault import JOB, KEK, OTHER_KEK, a_vault

KEKS = (KEK, OTHER_KEK)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all strings in a JSON value."""
    if isinstance(value, str):
        yield place
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(each, (*place, key))


def with_change(content: Any, place: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    content = copy.deepcopy(content)
    at = content
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = change(at[place[-1]])
    return content


def refused(path: Path, job: str = JOB) -> str:
    """What everything that opens a keyring says of it; all of it must be exit code 77."""
    said = []
    for kek in KEKS:
        for attempt in (
            lambda kek=kek: Keyring.open(path, job, [kek]),
            lambda kek=kek: JobKeys(path, job, [kek]).to_seal(),
            lambda kek=kek: rotate(path, [kek], Key.random()),
            lambda kek=kek: grant(path, [kek], Key.random()),
            lambda kek=kek: revoke(path, [kek], kek.id),
        ):
            with pytest.raises(IntegrityError) as caught:
                attempt()
            said.append(str(caught.value))
    assert all(len(each) < 1000 and each.isprintable() for each in said)
    return said[0]


def test_every_changed_character_of_a_keyring_is_noticed(tmp_path: Path) -> None:
    path = a_keyring(tmp_path, keks=KEKS, keys=[Key.random(), Key.random()]).path
    whole = content_of(path)
    places = list(leaves(whole))
    assert len(places) > 15
    for place in places:
        for change in (
            lambda text: text[:-1] + ("0" if text[-1] != "0" else "1"),
            lambda text: ("a" if text[0] != "a" else "b") + text[1:],
            lambda text: text[:-2],
            lambda text: f"{text}0",
            lambda text: "",
        ):
            write_content(path, with_change(whole, place, change))
            refused(path, content_of(path)["job"] or JOB)


def test_every_entry_left_out_doubled_or_moved_is_noticed(tmp_path: Path) -> None:
    path = a_keyring(tmp_path, keks=KEKS, keys=[Key.random(), Key.random()]).path
    whole = content_of(path)
    for name in whole:
        write_content(path, {key: value for key, value in whole.items() if key != name})
        refused(path)
    for name in ("keys", "recipients"):
        for change in (lambda each: each[:1], lambda each: each[1:], lambda each: each[::-1], lambda each: each * 2):
            write_content(path, with_change(whole, (name,), change))
            refused(path)
    for name in ("keys", "recipients"):
        for field in whole[name][0]:
            changed = copy.deepcopy(whole)
            one, other = changed[name]
            one[field], other[field] = other[field], one[field]
            if changed != whole:
                write_content(path, changed)
                refused(path)


def test_swapped_wrapped_keys_do_not_open(tmp_path: Path) -> None:
    path = a_keyring(tmp_path, keys=[Key.random(), Key.random()]).path
    content = content_of(path)
    wrapped = content["recipients"][0]["wrapped"]
    one, other = wrapped
    wrapped[one], wrapped[other] = wrapped[other], wrapped[one]
    write_content(path, content)
    assert "does not unwrap for this job" in refused(path)


def test_a_dropped_recipient_and_another_primary_are_noticed(tmp_path: Path) -> None:
    path = a_keyring(tmp_path, keks=KEKS, keys=[Key.random(), Key.random()]).path
    whole = content_of(path)
    write_content(path, with_change(whole, ("recipients",), lambda each: each[:1]))
    assert "does not authenticate" in str(caught(lambda: Keyring.open(path, JOB, [KEK])))
    other = whole["keys"][1]["id"]
    write_content(path, whole | {"primary": other})
    assert "does not authenticate" in str(caught(lambda: Keyring.open(path, JOB, [KEK])))


def caught(attempt: Callable[[], object]) -> IntegrityError:
    with pytest.raises(IntegrityError) as error:
        attempt()
    return error.value


def test_an_added_field_is_refused(tmp_path: Path) -> None:
    path = a_keyring(tmp_path).path
    whole = content_of(path)
    for place in ((), ("keys", 0), ("recipients", 0)):
        changed = copy.deepcopy(whole)
        at = changed
        for key in place:
            at = at[key]
        at["note"] = "x"
        write_content(path, changed)
        refused(path)


def test_a_keyring_of_another_job_does_not_open_whatever_job_it_names(tmp_path: Path) -> None:
    """With the same KEK, B would seal under A's key, which A's people have."""
    theirs = a_keyring(tmp_path / "a", job="lab/a").path
    ours = tmp_path / "b" / KEYRING
    ours.parent.mkdir()
    write_content(ours, content_of(theirs) | {"job": "lab/b"})
    assert "does not unwrap for this job" in refused(ours, "lab/b")
    with pytest.raises(IntegrityError):
        a_vault(ours.parent, job="lab/b").write(ours.parent / "file", b"x")
    assert [path.name for path in ours.parent.iterdir()] == [KEYRING]


def test_wrapped_keys_of_another_job_do_not_fit_into_a_keyring(tmp_path: Path) -> None:
    dek = Key.random()
    theirs, ours = (a_keyring(tmp_path / name, job=f"lab/{name}", keys=[dek]).path for name in "ab")
    write_content(ours, with_change(content_of(ours), ("recipients",), lambda _: content_of(theirs)["recipients"]))
    assert "does not unwrap for this job" in refused(ours, "lab/b")


def test_a_keyring_of_format_1_cannot_be_made_of_one_of_format_2(tmp_path: Path) -> None:
    path = a_keyring(tmp_path).path
    whole = content_of(path)
    entry = whole["keys"][0]
    old = {"id": entry["id"], "kek": KEK.id, "created": entry["created"]}
    old["wrapped"] = whole["recipients"][0]["wrapped"][entry["id"]]
    write_content(path, {"format": "dstj-keyring/1", "job": JOB, "primary": entry["id"], "keys": [old]})
    assert "does not unwrap" in str(caught(lambda: Keyring.open(path, JOB, [KEK])))


def test_a_wrapped_key_that_does_not_match_its_commitment_does_not_open(tmp_path: Path) -> None:
    """Who can wrap under the KEK, but not read, cannot put in a key of their own."""
    path = a_keyring(tmp_path, keks=KEKS).path
    content = content_of(path)
    key_id = content["primary"]
    content["recipients"][1]["wrapped"][key_id] = OTHER_KEK.wrap(
        Key.random().material, f"dstj-keyring/2\n{JOB}\n{key_id}".encode()
    ).hex()
    write_content(path, content)
    assert "than the one it commits to" in str(caught(lambda: Keyring.open(path, JOB, [OTHER_KEK])))


NOT_KEYRINGS = {
    "empty": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"format": "\xff"}',
    "a list": b"[]",
    "a number": b"1",
    "a string": b'"dstj-keyring/2"',
    "empty object": b"{}",
    "null": b"null",
    "NaN": b'{"format": NaN}',
    "another format": b'{"format": "dstj-keyring/9", "job": "a/b", "primary": null, "keys": []}',
    "a format that is no string": b'{"format": ["dstj-keyring/1"], "job": "a/b", "primary": null, "keys": []}',
    "nested": b"[" * 100_000,
    "nested in a field": b'{"format": "dstj-keyring/1", "job": ' + b"[" * 50_000,
    "nested objects": b'{"format":' * 20_000,
    "zeros": bytes(500),
    "terminal": b'{"format": "\x1b[31m\\u001b[31m\\n"}',
    "a foreign key": json.dumps({"format": "dstj-keyring/2", "\x1b[31m\n" + "x" * 10_000: 1}).encode(),
}


@pytest.mark.parametrize("content", NOT_KEYRINGS.values(), ids=NOT_KEYRINGS)
def test_what_is_no_keyring_is_refused_in_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEYRING).write_bytes(content)
    assert "is not a dstj-keyring/2 keyring" in refused(tmp_path / KEYRING)
    for attempt in (lambda: owner_of(tmp_path / KEYRING), lambda: shred(tmp_path / KEYRING)):
        assert isinstance(caught(attempt), IntegrityError)
    assert (tmp_path / KEYRING).read_bytes() == content


@pytest.mark.parametrize("version", [1, 2])
def test_a_keyring_with_any_value_replaced_is_refused(tmp_path: Path, version: int) -> None:
    path = a_keyring(tmp_path).path if version == 2 else a_keyring_1(tmp_path)
    whole = content_of(path)
    odd = [None, 1, 1.5, True, [], {}, ["x"], {"x": "y"}, "x\ny", "\x1b[31m", "x" * 9000, [[[]]], -1, 10**400]
    wanted = [("job",), ("primary",), ("keys",), ("keys", 0), *(("keys", 0, name) for name in whole["keys"][0])]
    if version == 2:
        wanted += [("mac",), ("recipients",), ("recipients", 0)]
        wanted += [("recipients", 0, name) for name in whole["recipients"][0]]
    for place in wanted:
        for value in odd:
            write_content(path, with_change(whole, place, lambda _, value=value: value))
            refused(path)


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda each: (
            st.lists(each)
            | st.dictionaries(
                st.sampled_from(["format", "job", "primary", "keys", "id", "wrapped", "kek", "created"]) | st.text(),
                each,
            )
        ),
    )
)
def test_no_json_makes_a_traceback(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any-json.json"
    for format_ in ("dstj-keyring/1", "dstj-keyring/2"):
        path.write_text(json.dumps(value | {"format": format_} if isinstance(value, dict) else value))
        with pytest.raises(IntegrityError):
            read_keyring(path)


def to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def to_a_file_outside(path: Path) -> None:
    outside = a_keyring(path.parent.parent / "outside").path
    path.symlink_to(outside)


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def a_socket(path: Path) -> None:
    where = Path.cwd()
    os.chdir(path.parent)  # its path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(where)


def a_file_of_a_gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize(
    "make",
    [to_a_device, to_a_file_outside, to_itself, to_nothing, a_socket, a_file_of_a_gigabyte, os.mkfifo, Path.mkdir],
    ids=lambda make: make.__name__,
)
def test_what_is_no_file_of_the_volume_is_refused_at_once(tmp_path: Path, make: Callable[[Path], object]) -> None:
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / KEYRING
    make(path)
    for attempt in (
        lambda: Keyring.open(path, JOB, [KEK]),
        lambda: Keyring.create(path, JOB, KEK),
        lambda: JobKeys(path, JOB, [KEK]),
        lambda: rotate(path, [KEK], OTHER_KEK),
        lambda: shred(path),
    ):
        assert isinstance(caught(attempt), IntegrityError)
