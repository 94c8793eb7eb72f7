import json
import sys
from pathlib import Path

import pytest

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.worker.training_config import load_config

SMALLEST = {
    "job": {"namespace": "ml", "name": "demo"},
    "numNodes": 1,
    "numProcPerNode": 1,
    "model": {"base": {"claimName": "models"}},
    "data": {"train": {"claimName": "data"}},
    "method": {},
    "optimization": {},
    "checkpoint": {},
    "evaluation": {},
    "export": {},
}


def written(path: Path, **changes: object) -> Path:
    file = path / "config.json"
    file.write_text(json.dumps(SMALLEST | changes))
    return file


def test_the_smallest_config_is_read_with_its_defaults(tmp_path: Path):
    config = load_config(written(tmp_path))
    assert str(config.job) == "ml/demo"
    assert config.optimization.global_batch_size == 32
    assert not config.seals_checkpoints


def test_a_key_seals_everything_unless_the_job_says_otherwise(tmp_path: Path):
    key = {"encryption": {"keyRef": {"secretName": "k"}}}
    config = load_config(written(tmp_path, checkpoint=key, export={"sealed": False}))
    assert (config.seals_checkpoints, config.seals_data, config.seals_export) == (True, True, False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no training config"),
        ("{", "is not JSON"),
        (json.dumps(SMALLEST | {"turbo": 1}), "turbo: unknown field"),
        (json.dumps(SMALLEST | {"numNodes": "two"}), "numNodes: input should be a valid integer"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_with_its_reason(tmp_path: Path, text: str | None, problem: str):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="(?i)" + problem):
        load_config(file)


def test_a_strategy_whose_library_the_image_lacks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = written(tmp_path, optimization={"strategy": "ZeRO2"})
    assert load_config(file).optimization.strategy.zero_stage == 2
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as if it were not installed
    with pytest.raises(
        ConfigError, match=r"ZeRO2 needs DeepSpeed.*\(hint: set strategy: FSDP, or build the image with"
    ):
        load_config(file)
