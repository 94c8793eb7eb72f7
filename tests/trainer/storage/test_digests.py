"""Digests of what is not sealed: BLAKE3 now, SHA-256 in what earlier versions wrote."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.digests import ContentDigest
from deepseek_trainer.storage.vault import FileRecord, Purpose, Vault

OFFICIAL = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"  # of nothing


def test_a_new_digest_names_its_function() -> None:
    assert str(ContentDigest()) == OFFICIAL


@given(st.lists(st.binary(max_size=100)))
def test_pieces_have_the_digest_of_the_whole(pieces: list[bytes]) -> None:
    for like in (None, OFFICIAL, "00" * 32):
        whole, by_piece = ContentDigest(like), ContentDigest(like)
        whole.update(b"".join(pieces))
        for piece in pieces:
            by_piece.update(piece)
        assert str(whole) == str(by_piece)


def test_what_an_earlier_version_recorded_is_still_verified(tmp_path: Path) -> None:
    vault = Vault("lab/demo", Purpose.DATA)
    new = vault.write(tmp_path / "file", b"content")
    old = hashlib.sha256(b"content").hexdigest()
    for digest in (new.digest, old):
        vault.verify(tmp_path / "file", digest=digest)
        assert vault.read(tmp_path / "file", digest=digest) == b"content"
        assert b"".join(vault.pieces(tmp_path / "file", record=FileRecord("file", 7, 7, digest))) == b"content"


@pytest.mark.parametrize("digest", ["00" * 32, OFFICIAL])
def test_another_content_is_refused_by_either(tmp_path: Path, digest: str) -> None:
    vault = Vault("lab/demo", Purpose.DATA)
    vault.write(tmp_path / "file", b"content")
    with pytest.raises(IntegrityError, match="not the file that was recorded"):
        vault.verify(tmp_path / "file", digest=digest)
