"""Keys that are derived from keys."""

import hmac

import pytest

from deepseek_trainer.storage.derivation import derived
from support.builders.vault import KEK, OTHER_KEK


@pytest.mark.parametrize("length", [16, 32])
def test_a_derived_key_is_that_of_hkdf_as_rfc_5869_describes_it(length: int) -> None:
    extracted = hmac.digest(bytes(32), KEK.material, "sha256")
    expected = hmac.digest(extracted, b"dstj/names v1\x01", "sha256")
    assert derived(KEK, "names v1", length) == expected[:length]


def test_every_key_and_purpose_have_a_key_of_their_own() -> None:
    keys = {derived(key, purpose) for key in (KEK, OTHER_KEK) for purpose in ("names v1", "names v2")}
    assert len(keys | {KEK.material, OTHER_KEK.material}) == 6
