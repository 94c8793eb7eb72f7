import pytest
import torch
from torch import nn

from deepseek_trainer.training.ema import Ema


def averaged(decay: float, values: list[float]) -> tuple[Ema, nn.Linear]:
    """After weights that were `values` one after the other, the first before any step."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, values[0])
    ema = Ema(dict(model.named_parameters()), decay)
    for step, value in enumerate(values[1:], 1):
        nn.init.constant_(model.weight, value)
        ema.update(step)
    return ema, model


def test_the_average_is_the_closed_form():
    """Long after the first steps: average_n = d^n a_0 + (1 - d) sum of d^(n-i) w_i."""
    decay, values = 0.1, [3.0, 1.0, -2.0, 5.0, 4.0]
    ema, _ = averaged(decay, values)
    n = len(values) - 1
    closed = decay**n * values[0] + (1 - decay) * sum(decay ** (n - i) * w for i, w in enumerate(values) if i)
    assert float(ema.averages["weight"]) == pytest.approx(closed, rel=1e-6)


def test_a_slow_average_forgets_the_first_weights_soon():
    ema, _ = averaged(0.999, [100.0, 0.0, 0.0])
    assert float(ema.averages["weight"]) == pytest.approx(100 * (2 / 11) * (3 / 12), rel=1e-6)


def test_the_averages_take_the_place_of_the_weights_and_give_it_back_to_the_last_bit():
    ema, model = averaged(0.3, [0.1, 0.7, 0.3])
    before, average = model.weight.detach().clone(), ema.averages["weight"].clone()
    with ema.in_place():
        assert torch.equal(model.weight, average)
    assert torch.equal(model.weight, before)
    assert torch.equal(ema.averages["weight"], average)
