"""No file of a checkpoint says NaN, and those of earlier versions that do still open."""

import json
import math

import pytest

from deepseek_trainer.checkpoints.manifest import Manifest
from deepseek_trainer.checkpoints.packed import Packer, unpacked
from deepseek_trainer.contract.foreign import parsed
from deepseek_trainer.training.state import RunState
from support.builders.vault import a_state, a_store


def test_every_json_file_of_a_checkpoint_is_strict(tmp_path):
    state = a_state() | {"extra": {"lr": math.inf, "scales": [math.nan, 1.5]}}
    run = RunState(step=3, before={"scores": {"loss": math.nan}}, history=[{"loss": -math.inf}])
    info = a_store(tmp_path, sealed=False).save(3, state, {"run": run.to_json(), "numbers": [math.nan]})
    files = [*info.path.glob("*.json"), tmp_path / "checkpoints/HEAD.json"]
    assert len(files) == 3
    for file in files:
        parsed(file.read_bytes())
    assert RunState.from_json(info.meta["run"]).best_loss == math.inf


def test_a_manifest_of_an_earlier_version_with_nan_still_opens(tmp_path):
    info = a_store(tmp_path, sealed=False).save(3, a_state(), {"loss": 1.5})
    old = (info.path / "manifest.json").read_text().replace("1.5", "NaN")
    assert math.isnan(Manifest.from_json(old.encode()).meta["loss"])


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1.5])
def test_a_state_whose_layout_is_not_ours_keeps_its_numbers(number):
    tree = parsed(json.dumps(Packer({}).tree({"scale": number}), allow_nan=False))
    assert str(unpacked(tree, {}, {})["scale"]) == str(number)
