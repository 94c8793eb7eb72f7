"""What a job's config comes to once its training records are counted."""

import pytest

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataFormat
from deepseek_trainer.contract.method import (
    FEW_RECORDS,
    MANY_RECORDS,
    MethodSpec,
    MethodType,
    PreferenceLoss,
    PreferenceSpec,
)
from deepseek_trainer.contract.model import BaseModelSource, ModelSpec
from deepseek_trainer.contract.optimization import OptimizationSpec
from support.builders.loop import config


def by_odds(method: str) -> TrainingConfig:
    asked = job(method, "Preference")
    spec = asked.method.model_copy(update={"preference": PreferenceSpec(loss=PreferenceLoss.ORPO)})
    return asked.model_copy(update={"method": spec})


def job(method: str, format_: str = "Text", rate: float | None = None, *, has_base: bool = True) -> TrainingConfig:
    base = config()
    model = ModelSpec(base=BaseModelSource(claim_name="models")) if has_base else base.model
    parts = {
        "model": model,
        "method": MethodSpec(type=MethodType(method)),
        "data": base.data.model_copy(update={"format": DataFormat(format_)}),
        "optimization": OptimizationSpec(learning_rate=rate),
    }
    return base.model_copy(update=parts)


@pytest.mark.parametrize(
    ("asked", "records", "rate"),
    [
        (job("Full"), 1, 5e-5),
        (job("LoRA"), 1, 2e-4),
        (job("QLoRA", "Instruction"), 1, 2e-4),
        (job("Full", "Preference"), 1, 1e-6),
        (job("LoRA", "Preference"), 1, 1e-5),
        (by_odds("Full"), 1, 8e-6),
        (by_odds("LoRA"), 1, 8e-5),
        (job("Auto"), FEW_RECORDS - 1, 2e-4),
        (job("Auto"), MANY_RECORDS, 5e-5),
        (job("Auto", has_base=False), 1, 5e-5),
        (job("LoRA", rate=5e-5), 1, 5e-5),
        (job("Auto", rate=0.1), MANY_RECORDS, 0.1),
    ],
)
def test_a_job_without_a_learning_rate_gets_that_of_its_method(
    asked: TrainingConfig, records: int, rate: float
) -> None:
    assert asked.settled(records).optimization.peak_rate == rate
    assert asked.with_rate(records).optimization.peak_rate == rate
    assert asked.with_rate(records).method == asked.method, "Auto stays what the file says"


def test_whole_epochs_stay_whole_numbers_in_the_config_of_the_pods() -> None:
    written = {epochs: OptimizationSpec(epochs=epochs).model_dump_json() for epochs in (3, 0.5)}
    assert '"epochs":3,' in written[3]
    assert '"epochs":0.5,' in written[0.5]
