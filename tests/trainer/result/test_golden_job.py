"""Prepared data and a result as sealed files, which every later version must read; docs/checkpoint-format.md.

`--update-golden` writes them anew, from fixed randomness.
"""

import hashlib
import hmac
import io
import json
import os
import random
import secrets
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from deepseek_trainer.contract.names import Paths
from deepseek_trainer.result.manifest import open_result
from deepseek_trainer.storage import keyring
from deepseek_trainer.storage.keyring import Keyring
from deepseek_trainer.storage.vault import Purpose
from support.builders.data import RUN, a_config, open_prepared, prepare, questions, some_paths, write_jsonl
from support.builders.result import a_result
from support.builders.vault import KEK, a_vault
from support.judges.tink import tink_stream

WORK = Path(__file__).parents[2] / "golden" / "sealed_v3" / "job"
JOB = "ml/demo"
CONFIG = a_config(format="Instruction", sequenceLength=64, seal=True, curriculum={})
MODEL_DIGEST = "0123456789abcdef" * 2  # of what `stat` told about the base model
WEIGHTS = save({"lm_head.weight": np.arange(4, dtype=np.float32)})
RESULT = {
    "model.safetensors": WEIGHTS,
    "adapter/adapter_config.json": b'{"r": 4}',
    "adapter/adapter_model.safetensors": WEIGHTS,
}


@pytest.fixture(scope="module", autouse=True)
def rewritten(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    if request.config.getoption("--update-golden"):
        with pytest.MonkeyPatch.context() as patch:
            rewrite(tmp_path_factory.mktemp("job"), patch)


def rewrite(root: Path, patch: pytest.MonkeyPatch) -> None:
    fixed = random.Random(7)
    patch.setattr(os, "urandom", fixed.randbytes)
    patch.setattr(secrets, "token_bytes", fixed.randbytes)
    patch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=fixed.randbytes(16)))
    patch.setattr(keyring, "utc_now", lambda: "2026-11-21T00:00:00Z")
    paths = some_paths(root)
    write_jsonl(paths, "a.jsonl", questions(12))
    paths.work.mkdir()
    vault = a_vault(paths.work, purpose=Purpose.DATA, job=JOB)
    prepare(CONFIG, paths, vault, "uid-1")
    model = paths.prepared / f"model-{vault.name_of(MODEL_DIGEST)}"
    model.mkdir()
    source = {"format": "dstj-model/1", "sha256": "ab" * 32, "claimName": "models", "path": "base"}
    vault.write(model / "source.json", json.dumps(source | {"weights": ["model.safetensors"]}).encode())
    vault.write(model / "config.json", b"{}")
    vault.write(model / "model.safetensors", WEIGHTS)
    a_result(paths.work, job=JOB, files=RESULT, commit="cd" * 32)
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(paths.work, WORK)


def test_golden_prepared_data_open(tmp_path: Path) -> None:
    shutil.copytree(WORK, tmp_path / "work")
    data = open_prepared(CONFIG, Paths(tmp_path), a_vault(tmp_path / "work", purpose=Purpose.DATA, job=JOB), RUN)
    texts = [data.tokenizer.decode(row) for row in data.train.batch(range(len(data.train))).tokens_BT]
    assert sum("says: be early" in text for text in texts) >= 2
    assert {prompt.prompt for prompt in data.prompts} <= {each["prompt"] for each in questions(12)}


def test_golden_result_opens() -> None:
    result = open_result(WORK / "export/demo", a_vault(WORK, purpose=Purpose.EXPORT, job=JOB))
    assert {name: b"".join(map(bytes, result.pieces(name))) for name in result.records} == RESULT
    assert result.manifest is not None
    assert (result.manifest.step, result.manifest.commit) == (20, "cd" * 32)


def test_golden_job_opens_with_what_its_page_says_and_none_of_our_code_but_the_keyring() -> None:
    """docs/checkpoint-format.md, followed by hand with Tink, HMAC and safetensors."""
    dek = Keyring.open(WORK / "keyring.json", JOB, [KEK]).keys[0].material
    name_key = hmac.digest(hmac.digest(bytes(32), dek, "sha256"), b"dstj/names v1\x01", "sha256")

    def name_of(digest: str) -> str:
        return hmac.digest(name_key, digest.encode(), "sha256")[:20].hex()

    def raw(path: str) -> bytes:
        return (WORK / f"{path}.sealed").read_bytes()

    def opened(path: str) -> bytes:
        directory, name = path.split("/")[-2:]
        purpose = "export" if path.startswith("export/") else "data"
        bound_to = f"dstj-sealed/1\n{JOB}\n{purpose}\n{directory}\n-\n-\n{name}"
        with tink_stream(dek).new_decrypting_stream(io.BytesIO(raw(path)), bound_to.encode()) as stream:
            return bytes(stream.read())

    def is_listed(file: dict[str, Any], path: str) -> bool:
        size, content = len(raw(path)), opened(path)
        salt, tags = raw(path)[1:33].hex(), hashlib.sha256(raw(path)[-16:]).hexdigest()  # of one segment
        return (file["size"], file["plainSize"], file["salt"], file["digest"]) == (size, len(content), salt, tags)

    pointer = json.loads(opened("prepared/runs/uid-1/pointer.json"))
    data = f"prepared/{pointer['data']}"
    manifest = json.loads(opened(f"{data}/manifest.json"))
    assert pointer["runId"] == "uid-1"
    assert name_of(manifest["digest"]) == pointer["data"]
    assert manifest["format"] == "dstj-data/1"
    rows = opened(f"{data}/train-00000.rows")
    length, count = manifest["sequence_length"], manifest["shards"]["train"][0]["rows"]
    row = 2 * length + 2 * ((length + 7) // 8)
    assert len(rows) == count * row
    first_token, learned, starts = rows[:2], rows[2 * length], rows[2 * length + (length + 7) // 8]
    tokenizer = json.loads(opened(f"{data}/tokenizer.json"))
    begin = next(each["id"] for each in tokenizer["added_tokens"] if each["content"] == "<|begin|>")
    assert int.from_bytes(first_token, "little") == begin
    assert (learned >> 7, starts >> 7) == (0, 1), "a document begins, and its first token is not learned"
    order = np.frombuffer(opened(f"{data}/train.order"), "<i8")
    assert sorted(order) == [*range(count)]
    assert all(
        each.keys() == {"prompt", "response", "must_contain"} for each in json.loads(opened(f"{data}/prompts.json"))
    )

    model = f"prepared/model-{name_of(MODEL_DIGEST)}"
    assert json.loads(opened(f"{model}/source.json"))["weights"] == ["model.safetensors"]
    assert load(opened(f"{model}/model.safetensors"))["lm_head.weight"].tolist() == [0, 1, 2, 3]

    result = json.loads(opened("export/demo/manifest.json"))
    assert (result["format"], result["job"], result["name"]) == ("dstj-export/1", JOB, "demo")
    assert {file["name"] for file in result["files"]} == {
        str(path.relative_to(WORK / "export/demo")).removesuffix(".sealed")
        for path in (WORK / "export/demo").rglob("*.sealed")
    } - {"manifest.json"}
    assert all(is_listed(file, f"export/demo/{file['name']}") for file in result["files"])
    assert opened("export/demo/adapter/adapter_config.json") == b'{"r": 4}'
