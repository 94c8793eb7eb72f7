import pytest
import torch

from deepseek_trainer.contract.optimization import Precision
from deepseek_trainer.model.precision import STEPS_TO_GROW, LossScale, autocast, compute_dtype


@pytest.mark.parametrize(
    ("precision", "device", "computes_in_bf16", "wanted"),
    [
        (Precision.AUTO, "cuda", True, torch.bfloat16),
        (Precision.AUTO, "cuda", False, torch.float32),
        (Precision.AUTO, "cpu", True, torch.float32),
        (Precision.BF16, "cpu", False, torch.bfloat16),
        (Precision.FP16, "cuda", True, torch.float16),
        (Precision.FP32, "cuda", True, torch.float32),
    ],
)
def test_by_default_only_a_gpu_that_computes_in_bf16_does(
    precision: Precision,
    device: str,
    computes_in_bf16: bool,
    wanted: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: computes_in_bf16 or including_emulation
    )
    assert compute_dtype(precision, torch.device(device)) is wanted


def test_matrix_products_are_made_in_the_precision_asked_for():
    square = torch.ones(2, 2)
    for precision, dtype in ((Precision.FP16, torch.float16), (Precision.FP32, torch.float32)):
        with autocast(precision, torch.device("cpu")):
            assert (square @ square).dtype is dtype


def test_the_loss_scale_halves_on_an_overflow_and_doubles_after_many_good_steps():
    scale = LossScale()
    assert scale.overflowed()
    assert scale.value == 2.0**15
    for _ in range(STEPS_TO_GROW):
        scale.fitted()
    assert (scale.value, scale.good_steps) == (2.0**16, 0)


def test_a_gradient_that_overflows_at_every_scale_is_not_for_the_scale_to_mend():
    scale = LossScale()
    assert sum(scale.overflowed() for _ in range(20)) == 16
