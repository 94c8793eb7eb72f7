"""Whoever can write to a volume in the clear can let a manifest tell anything of its run."""

from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.checkpoints.legs import legs_of
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.run.resume import is_own
from support.builders.vault import a_state, a_store

LEG = {"jobUid": "a", "after": 0, "settings": None}


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"jobUid": 5},
        {"jobUid": "a", "legs": 5},
        {"jobUid": "a", "legs": []},
        {"jobUid": "a", "legs": [5]},
        {"jobUid": "a", "legs": [{}]},
        {"jobUid": "a", "legs": [LEG | {"after": "x"}]},
        {"jobUid": "a", "legs": [LEG | {"settings": 5}]},
    ],
    ids=str,
)
def test_legs_that_are_none_are_refused(tmp_path: Path, meta: dict[str, Any]) -> None:
    info = a_store(tmp_path, sealed=False).save(1, a_state(), meta)
    with pytest.raises(IntegrityError, match="does not tell how its run goes on"):
        legs_of(info)


def test_a_checkpoint_that_does_not_name_its_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_trainer.run.resume.job_uid", lambda: "a")
    info = a_store(tmp_path, sealed=False).save(1, a_state(), {})
    with pytest.raises(IntegrityError, match="does not tell how its run goes on"):
        is_own(info)
