"""Stores in the clear of all manifest formats since digests differ; docs/checkpoint-format.md describes them.

`--update-golden` writes that of the newest format anew.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from blake3 import blake3

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, list_checkpoints
from support.builders.vault import a_state, a_store, latest_weights
from trainer.storage.test_sealed_golden import GOLDEN, fix_luck

STORES = [GOLDEN / f"clear_v{version}" / "work" for version in (2, 3)]
OF_ALL_VERSIONS = pytest.mark.parametrize("work", STORES, ids=["v2", "v3"])


@pytest.fixture(autouse=True)
def _rewritten(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.config.getoption("--update-golden"):
        with monkeypatch.context() as patch:
            fix_luck(patch)
            shutil.rmtree(STORES[-1], ignore_errors=True)
            store = a_store(STORES[-1], sealed=False)
            for step in (6, 7):
                store.save(step, a_state(step) | {"scheduler": {"step": step}}, {"cursor": "00ff"})


@OF_ALL_VERSIONS
def test_a_store_of_any_version_is_read_and_gone_on_with(tmp_path: Path, work: Path) -> None:
    shutil.copytree(work, tmp_path / "work")
    store = a_store(tmp_path / "work", sealed=False)
    assert latest_weights(store) == 7
    store.save(8, a_state(8), {})
    assert latest_weights(a_store(tmp_path / "work", sealed=False)) == 8
    found = list_checkpoints(store.directory, store.vault)
    assert [each.step for each in found if isinstance(each, CheckpointInfo)] == [6, 7, 8]


@OF_ALL_VERSIONS
def test_digests_are_those_that_the_page_says(work: Path) -> None:
    directory = work / "checkpoints"
    head = json.loads((directory / "HEAD.json").read_bytes())
    manifest = json.loads((directory / "step-00000007/manifest.json").read_bytes())
    recorded = {f"step-00000007/{file['name']}": file["digest"] for file in manifest["files"]}
    recorded["step-00000007/manifest.json"] = head["commits"][-1]["digest"]
    for name, digest in recorded.items():
        content = (directory / name).read_bytes()
        new, old = f"blake3:{blake3(content).hexdigest()}", hashlib.sha256(content).hexdigest()
        assert digest == (new if manifest["format"] == "dstj-checkpoint/3" else old)


@OF_ALL_VERSIONS
def test_a_changed_byte_is_found(tmp_path: Path, work: Path) -> None:
    shutil.copytree(work, tmp_path / "work")
    file = tmp_path / "work/checkpoints/step-00000007/rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert latest_weights(a_store(tmp_path / "work", sealed=False)) == 6
