"""Keyrings as earlier versions, several recipients and attackers leave them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

from deepseek_trainer.storage.keyring import KEYRING, Keyring, issued, recipient
from deepseek_trainer.storage.keys import Key
from support.builders.vault import JOB, KEK

CREATED = "2026-11-21T11:05:55Z"


def a_keyring(work: Path, *, job: str = JOB, keks: Sequence[Key] = (KEK,), keys: Sequence[Key] = ()) -> Keyring:
    """A keyring of format 2 in `work`, which all of `keks` open; the first of `keys` is the primary."""
    keys = tuple(keys) or (Key.random(),)
    work.mkdir(parents=True, exist_ok=True)
    content = issued(job, keys, {key.id: CREATED for key in keys}, tuple(recipient(kek, job, keys) for kek in keks))
    (work / KEYRING).write_bytes(content.to_json())
    return Keyring.open(work / KEYRING, job, keks)


def a_keyring_1(work: Path, *, job: str = JOB, kek: Key = KEK, keys: Sequence[Key] = ()) -> Path:
    """A keyring of format 1, as earlier versions wrote it."""
    keys = tuple(keys) or (Key.random(),)
    entries = [
        {
            "id": key.id,
            "wrapped": aes_key_wrap_with_padding(kek.material, key.material).hex(),
            "kek": kek.id,
            "created": CREATED,
        }
        for key in keys
    ]
    work.mkdir(parents=True, exist_ok=True)
    content = {"format": "dstj-keyring/1", "job": job, "primary": keys[0].id, "keys": entries}
    (work / KEYRING).write_text(json.dumps(content, indent=2))
    return work / KEYRING


def content_of(path: Path) -> Any:
    return json.loads(path.read_text())


def write_content(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2))
