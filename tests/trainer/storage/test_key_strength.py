"""What is given as a key and could be guessed is refused, with the way out."""

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.keys import Key, keks_beside, keks_in, read_kek
from support.builders.vault import KEK, a_key_file

WEAK = {
    "zeros": bytes(32),
    "one byte repeated": b"\xa7" * 32,
    "four bytes repeated": b"\x01\xfe\x80\x93" * 8,
    "half a key twice": bytes(range(200, 216)) * 2,
    "hex": bytes(range(240, 256)).hex().encode(),
    "Base64": base64.b64encode(bytes(range(232, 256))),
    "a passphrase": b"correct horse battery staple 42!",
    "a passphrase with a line break": b"correct horse battery staple 42\n",
    "a passphrase filled up": b"correct horse battery staple".ljust(32, b"\0"),
    "a passphrase beyond ASCII": "Heizölrückstoßabdämpfung für 32".encode()[:32].ljust(32, b"!"),
    "a UUID": b"01234567-89ab-cdef-0123-456789ab",
}


@pytest.mark.parametrize("material", WEAK.values(), ids=WEAK)
def test_a_key_that_could_be_guessed_is_refused_with_the_way_out(tmp_path: Path, material: bytes) -> None:
    path = a_key_file(tmp_path / "kek", material)
    with pytest.raises(IntegrityError, match=r"could be guessed.*dstj keys generate.*dstj keys rotate") as refused:
        read_kek(path)
    assert material.hex() not in str(refused.value)
    assert repr(material)[2:-1] not in str(refused.value)
    with pytest.raises(IntegrityError, match="could be guessed"):
        keks_in(tmp_path)


@settings(max_examples=40)
@given(st.text(alphabet=st.characters(blacklist_categories=["C", "Zl", "Zp"]), min_size=32))
def test_no_text_is_a_key(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    content = text.encode()[:32].decode(errors="ignore").encode().ljust(32, b"_")
    with pytest.raises(IntegrityError, match="could be guessed"):
        read_kek(a_key_file(tmp_path_factory.getbasetemp() / "text" / "kek", content))


def test_random_keys_are_taken(tmp_path: Path) -> None:
    for _ in range(50):
        assert read_kek(a_key_file(tmp_path / "kek", Key.random().material))


def test_a_weak_key_of_an_earlier_version_still_opens_beside_a_new_one(tmp_path: Path) -> None:
    path = a_key_file(tmp_path / "kek")
    old = Key(WEAK["a passphrase"])
    a_key_file(tmp_path / "kek-old", old.material)
    assert [key.id for key in keks_beside(path)] == [KEK.id, old.id]
    with pytest.raises(IntegrityError, match="could be guessed"):
        keks_beside(tmp_path / "kek-old")


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_no_key_has_another_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, not {length}"):
        Key(bytes(length))
