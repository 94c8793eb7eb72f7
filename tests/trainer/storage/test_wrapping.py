"""How a key-encryption key wraps a data key: bound to its context, and only as docs/checkpoint-format.md says."""

import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.storage.kek import Kek, UnwrapError
from deepseek_trainer.storage.keys import Key
from support.builders.vault import KEK, OTHER_KEK

DEK = bytes(range(100, 132))


def a_kek() -> Kek:
    return KEK


def test_a_wrapped_key_unwraps_in_its_context_alone() -> None:
    wrapped = a_kek().wrap(DEK, b"lab/demo")
    assert a_kek().unwrap(wrapped, b"lab/demo") == DEK
    for kek, context in ((KEK, b"lab/other"), (KEK, b""), (OTHER_KEK, b"lab/demo")):
        with pytest.raises(UnwrapError):
            kek.unwrap(wrapped, context)


def test_no_two_wrappings_are_equal() -> None:
    assert KEK.wrap(DEK, b"c") != KEK.wrap(DEK, b"c")


@given(st.data())
def test_no_changed_byte_unwraps(data: st.DataObject) -> None:
    wrapped = bytearray(KEK.wrap(DEK, b"c"))
    place = data.draw(st.integers(0, len(wrapped) - 1))
    wrapped[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UnwrapError):
        KEK.unwrap(bytes(wrapped), b"c")


@given(st.binary(max_size=80))
def test_what_nobody_wrapped_does_not_unwrap(wrapped: bytes) -> None:
    with pytest.raises(UnwrapError):
        KEK.unwrap(wrapped, b"c")
    with pytest.raises(UnwrapError):
        KEK.unwrap_unbound(wrapped)


def test_the_page_s_words_unwrap() -> None:
    """HKDF-SHA256 by hand (RFC 5869): extract with a salt of zeros, one block of expand."""
    wrapped = KEK.wrap(DEK, b"c")
    extracted = hmac.digest(bytes(32), KEK.material, "sha256")
    wrapping = hmac.digest(extracted, b"dstj/wrap\x01", "sha256")
    assert AESGCM(wrapping).decrypt(wrapped[:12], wrapped[12:], b"c") == DEK
    assert len(wrapped) == 60


def test_the_key_itself_encrypts_nothing_any_more() -> None:
    wrapped = KEK.wrap(DEK, b"c")
    with pytest.raises(UnwrapError):
        KEK.unwrap_unbound(wrapped)
    assert Key(KEK.unwrap_unbound(aes_key_wrap_with_padding(KEK.material, DEK))).material == DEK
