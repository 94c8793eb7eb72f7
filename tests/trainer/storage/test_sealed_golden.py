"""Files of all format versions, which every later version must read; docs/checkpoint-format.md describes them.

`--update-golden` writes those of the newest version anew, from fixed randomness.
"""

import hashlib
import hmac
import io
import json
import os
import random
import secrets
import shutil
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from safetensors.numpy import load

from deepseek_trainer.checkpoints import store
from deepseek_trainer.checkpoints.dcp import Piece
from deepseek_trainer.checkpoints.manifest import TensorInfo
from deepseek_trainer.checkpoints.store import Part
from deepseek_trainer.storage import keyring
from deepseek_trainer.storage.keyring import Keyring
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.rotation import grant
from deepseek_trainer.storage.sealing import SealedWriter
from deepseek_trainer.storage.unsealing import SealedReader
from deepseek_trainer.storage.vault import associated_data
from support.builders.vault import KEK, OTHER_KEK, a_state, a_store, weights_of
from support.judges.tink import tink_stream

GOLDEN = Path(__file__).parents[2] / "golden"
VECTORS = GOLDEN / "sealed_v1" / "vectors.json"  # sealed files are the same in all versions
STORES = [GOLDEN / f"sealed_v{version}" / "work" for version in (1, 2, 3)]
TWO_RANKS = [GOLDEN / f"sealed_v{version}" / "two_ranks" for version in (2, 3)]
OF_ALL_VERSIONS = pytest.mark.parametrize("work", STORES, ids=["v1", "v2", "v3"])
OF_TWO_RANKS = pytest.mark.parametrize("work", TWO_RANKS, ids=["v2", "v3"])
SIZES = (0, 1, 100, 1_048_519, 1_048_520, 1_048_521, 2_097_080, 2_097_081)
SHOWN = 256  # longest sealed file that the vectors hold in full [bytes]


def plaintext(size: int) -> bytes:
    """Byte i is i * 7 mod 251."""
    period = bytes(i * 7 % 251 for i in range(251))
    return (period * (size // 251 + 1))[:size]


def vector(size: int) -> dict[str, Any]:
    key, randomness = bytes(range(32)), bytes(range(100, 139))
    bound_to = associated_data("lab/demo", "data", "tokens.bin", directory="abc")
    sink = io.BytesIO()
    writer = SealedWriter(sink, key, bound_to, randomness=randomness)
    writer.write(plaintext(size))
    writer.close()
    content = sink.getvalue()
    return {
        "plainSize": size,
        "key": key.hex(),
        "salt": randomness[:32].hex(),
        "noncePrefix": randomness[32:].hex(),
        "associatedData": bound_to.decode(),
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "tagsDigest": writer.digest,
        "sealed": content.hex() if len(content) <= SHOWN else None,
    }


def test_golden_vectors_are_what_we_seal(golden: Callable[[str, str], None]) -> None:
    content = {"kek": KEK.material.hex(), "vectors": [vector(size) for size in SIZES]}
    golden("sealed_v1/vectors.json", json.dumps(content, indent=1) + "\n")


def test_golden_vectors_are_what_we_open(tmp_path: Path) -> None:
    for expected in json.loads(VECTORS.read_text())["vectors"]:
        if expected["sealed"] is not None:
            (tmp_path / "file").write_bytes(bytes.fromhex(expected["sealed"]))
            with SealedReader(
                tmp_path / "file", bytes.fromhex(expected["key"]), expected["associatedData"].encode()
            ) as reader:
                assert reader.read_at(0, reader.size) == plaintext(expected["plainSize"])
                assert reader.verify() == expected["tagsDigest"]


@OF_ALL_VERSIONS
def test_golden_store_opens(tmp_path: Path, work: Path, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden") and work == STORES[-1]:
        with pytest.MonkeyPatch.context() as patch:
            rewrite_store(patch)
    shutil.copytree(work, tmp_path / "work")  # opening takes a store over
    store = a_store(tmp_path / "work")
    info = store.latest()
    assert info is not None
    state, meta = store.load(info)
    assert (info.step, weights_of(state), state["scheduler"], meta) == (7, 7.0, {"step": 7}, {"cursor": "00ff"})
    assert not store.refused


@OF_ALL_VERSIONS
def test_golden_keyring_opens(work: Path) -> None:
    kek = Key(bytes.fromhex(json.loads(VECTORS.read_text())["kek"]))
    (key,) = Keyring.open(work / "keyring.json", "lab/demo", [kek]).keys
    assert key.id == json.loads((work / "keyring.json").read_text())["primary"]


def test_golden_keyring_opens_for_its_second_recipient() -> None:
    keyrings = [Keyring.open(STORES[-1] / "keyring.json", "lab/demo", [kek]) for kek in (KEK, OTHER_KEK)]
    assert [each.opener.id for each in keyrings] == [KEK.id, OTHER_KEK.id]
    assert len({each.keys[0].material for each in keyrings}) == 1


def dek_of(path: Path, kek: bytes) -> bytes:
    """The data key of a keyring, by the words of docs/checkpoint-format.md."""
    keyring = json.loads(path.read_text())
    (entry,) = keyring["keys"]
    if keyring["format"] == "dstj-keyring/1":
        dek = aes_key_unwrap_with_padding(kek, bytes.fromhex(entry["wrapped"]))
    else:
        dek = dek_of_format_2(keyring, kek)
    assert hmac.digest(dek, b"dstj key id v1", "sha256")[:8].hex() == entry["id"] == keyring["primary"]
    return dek


def dek_of_format_2(keyring: dict[str, Any], kek: bytes) -> bytes:
    (entry,), kek_id = keyring["keys"], hmac.digest(kek, b"dstj key id v1", "sha256")[:8].hex()
    (ours,) = [each for each in keyring["recipients"] if each["kek"] == kek_id]
    wrapped = bytes.fromhex(ours["wrapped"][entry["id"]])
    bound_to = f"dstj-keyring/2\nlab/demo\n{entry['id']}".encode()
    dek = AESGCM(hkdf(kek, b"dstj/wrap")).decrypt(wrapped[:12], wrapped[12:], bound_to)
    assert hkdf(dek, b"dstj/commitment").hex() == entry["commitment"]
    rest = {key: value for key, value in keyring.items() if key != "mac"}
    authenticated = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    assert hmac.digest(hkdf(dek, b"dstj/keyring mac"), authenticated, "sha256").hex() == keyring["mac"]
    return dek


def hkdf(key: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt, 32 bytes."""
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), info + b"\1", "sha256")


@OF_ALL_VERSIONS
def test_golden_store_opens_with_what_its_page_says_and_none_of_our_code(work: Path) -> None:
    """docs/checkpoint-format.md, followed by hand with Tink, AES-GCM, AES-KWP and safetensors."""
    dek = dek_of(work / "keyring.json", bytes.fromhex(json.loads(VECTORS.read_text())["kek"]))

    def opened(name: str, step: str, rank: str) -> bytes:
        bound_to = f"dstj-sealed/1\nlab/demo\ncheckpoint\n-\n{step}\n{rank}\n{name.rpartition('/')[2]}"
        content = (work / "checkpoints" / f"{name}.sealed").read_bytes()
        with tink_stream(dek).new_decrypting_stream(io.BytesIO(content), bound_to.encode()) as stream:
            return bytes(stream.read())

    def raw(name: str) -> bytes:
        return (work / "checkpoints" / f"{name}.sealed").read_bytes()

    def digest(name: str) -> str:
        return hashlib.sha256(raw(name)[-16:]).hexdigest()  # one segment

    head = json.loads(opened("HEAD.json", "-", "-"))
    assert head["commits"][-1] == {"step": 7, "digest": digest("step-00000007/manifest.json")}
    manifest = json.loads(opened("step-00000007/manifest.json", "7", "-"))
    assert manifest["previous"] == head["commits"][-2]["digest"]
    assert [file["digest"] for file in manifest["files"]] == [
        digest(f"step-00000007/{file['name']}") for file in manifest["files"]
    ]
    for file in manifest["files"]:
        if manifest["format"] != "dstj-checkpoint/1":
            assert file["salt"] == raw(f"step-00000007/{file['name']}")[1:33].hex()
    tensors = load(opened("step-00000007/rank-00000.safetensors", "7", "0"))
    assert tensors["model/layers.0.weight"].tolist() == [7.0] * 4
    assert json.loads(opened("step-00000007/rank-00000.json", "7", "0")) == {"scheduler": {"step": 7}}


@OF_TWO_RANKS
def test_golden_tensor_of_two_ranks_is_put_together_by_what_its_page_says(
    work: Path, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--update-golden") and work == TWO_RANKS[-1]:
        with pytest.MonkeyPatch.context() as patch:
            rewrite_two_ranks(patch)
    dek = dek_of(work / "keyring.json", KEK.material)
    directory = work / "checkpoints/step-00000003"

    def opened(name: str, rank: str) -> bytes:
        bound_to = f"dstj-sealed/1\nlab/demo\ncheckpoint\n-\n3\n{rank}\n{name}"
        content = (directory / f"{name}.sealed").read_bytes()
        with tink_stream(dek).new_decrypting_stream(io.BytesIO(content), bound_to.encode()) as stream:
            return bytes(stream.read())

    manifest = json.loads(opened("manifest.json", "-"))
    ranks = {file["name"]: str(file["rank"]) for file in manifest["files"]}
    whole = {}
    for tensor in manifest["tensors"]:
        offset, shape = (tensor.get(key, default) for key, default in (("offset", None), ("whole", tensor["shape"])))
        name = tensor["name"] if offset is None else f"{tensor['name']}@{','.join(map(str, offset))}"
        block = values_of(opened(tensor["file"], ranks[tensor["file"]]), name, tensor["shape"])
        rows = whole.setdefault(tensor["name"], np.full(shape, np.nan, np.float32))
        rows[tuple(slice(o, o + n) for o, n in zip(offset or [0] * len(shape), tensor["shape"], strict=True))] = block
    assert manifest["worldSize"] == len(ranks) == 2
    assert whole["model/sharded"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]
    assert whole["model/whole"].tolist() == [1.0, 2.0]


def values_of(file: bytes, name: str, shape: list[int]) -> Any:
    """An F32 tensor of a safetensors file, by hand."""
    (length,) = struct.unpack("<Q", file[:8])
    entry = json.loads(file[8 : 8 + length])[name]
    begin, end = entry["data_offsets"]
    assert (entry["dtype"], entry["shape"]) == ("F32", shape)
    return np.frombuffer(file[8 + length + begin : 8 + length + end], "<f4").reshape(shape)


def rewrite_two_ranks(patch: pytest.MonkeyPatch) -> None:
    """Both ranks in this thread, one after the other, so that the bytes are the same each time."""
    fix_luck(patch)
    shutil.rmtree(TWO_RANKS[-1], ignore_errors=True)
    store = a_store(TWO_RANKS[-1], world_size=2, exchange=lambda value: [value, value])
    content = torch.arange(9, dtype=torch.float32).reshape(3, 3)
    blocks = {0: content[:2], 1: content[2:]}
    parts = []
    partial = store.directory / store._ledger.begin(3, 1)
    for rank, block in blocks.items():
        store._rank = rank
        info = TensorInfo("model/sharded", "F32", tuple(block.shape), store.file_name, (2 * rank, 0), (3, 3))
        pieces = [Piece(info, block)]
        if rank == 0:
            pieces.append(Piece(TensorInfo("model/whole", "F32", (2,), store.file_name), torch.tensor([1.0, 2.0])))
        parts.append(store._write(partial, 3, Part(pieces, {})))
    store._ledger.commit(partial, store._manifest(3, parts, {}))


def rewrite_store(patch: pytest.MonkeyPatch) -> None:
    fix_luck(patch)
    shutil.rmtree(STORES[-1], ignore_errors=True)
    store = a_store(STORES[-1])
    for step in (6, 7):
        store.save(step, a_state(step) | {"scheduler": {"step": step}}, {"cursor": "00ff"})
    grant(STORES[-1] / "keyring.json", [KEK], OTHER_KEK)


@OF_TWO_RANKS
def test_golden_store_of_two_ranks_loads_whole_on_one(tmp_path: Path, work: Path) -> None:
    shutil.copytree(work, tmp_path / "work")
    store = a_store(tmp_path / "work")
    info = store.latest()
    assert info is not None
    assert store.load(info)[0]["model"]["sharded"].flatten().tolist() == list(range(9))


def fix_luck(patch: pytest.MonkeyPatch) -> None:
    fixed = random.Random(7)
    patch.setattr(os, "urandom", fixed.randbytes)
    patch.setattr(secrets, "token_bytes", fixed.randbytes)
    patch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=fixed.randbytes(16)))
    for module in (keyring, store):
        patch.setattr(module, "utc_now", lambda: "2026-11-21T00:00:00Z")
