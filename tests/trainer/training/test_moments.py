"""A run goes on under another optimizer, or says why not."""

import pytest
import torch
from torch import Tensor, nn

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.training.optimizer import load_state_by_name, optimizers, state_by_name

RATE = 0.01


def a_model() -> nn.Module:
    """With a matrix that is large enough for 8 bits, and a bias that is not."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 100), nn.Linear(100, 70))


def train(model: nn.Module, parts: list[torch.optim.Optimizer], steps: int) -> None:
    for _ in range(steps):
        model(torch.arange(7)).square().sum().backward()
        for part in parts:
            part.step()
            part.zero_grad()


def parts_of(model: nn.Module, optimizer: str) -> list[torch.optim.Optimizer]:
    return optimizers(model, OptimizationSpec(optimizer=optimizer, learning_rate=RATE))


def trained_by(optimizer: str) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    model = a_model()
    parts = parts_of(model, optimizer)
    train(model, parts, 5)
    return model, parts


def gone_on(saved: tuple[nn.Module, list[torch.optim.Optimizer]], optimizer: str) -> dict[str, Tensor]:
    """By how much a step under `optimizer` changes the weights after those of `saved`."""
    model = a_model()
    model.load_state_dict(saved[0].state_dict())
    parts = parts_of(model, optimizer)
    load_state_by_name(
        dict(model.named_parameters()), parts, state_by_name(dict(saved[0].named_parameters()), saved[1])
    )
    train(model, parts, 1)
    return {name: value - saved[0].state_dict()[name] for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("first", "second"), [("AdamW", "AdamW8bit"), ("AdamW8bit", "AdamW")])
def test_moments_of_32_and_of_8_bits_become_each_other(first: str, second: str):
    saved = trained_by(first)
    expected, found = gone_on(saved, first), gone_on(saved, second)
    for name, change in found.items():
        assert float((change - expected[name]).abs().mean()) < 0.1 * float(expected[name].abs().mean()), name


def test_what_is_rounded_to_8_bits_is_what_the_optimizer_of_8_bits_has_itself():
    """Of second moments the largest number of a block has a level of its own, so that rounding them again is exact."""
    model, parts = trained_by("AdamW8bit")
    weights = dict(model.named_parameters())
    state, kept = state_by_name(weights, parts), {}
    for optimizer in ("AdamW", "AdamW8bit"):
        again = parts_of(model, optimizer)
        load_state_by_name(weights, again, kept or state)
        kept = state_by_name(weights, again)
    entry = kept["1.weight"]
    assert entry.keys() == state["1.weight"].keys()
    assert entry["step"] == 5
    for key in ("state2", "absmax2", "qmap1", "qmap2"):
        assert torch.equal(entry[key], state["1.weight"][key]), key
    assert kept["1.bias"]["state1"].dtype is torch.float32


@pytest.mark.parametrize(
    ("saved", "wanted"), [("Muon", "AdamW"), ("Muon", "AdamW8bit"), ("AdamW", "Muon"), ("AdamW8bit", "Muon")]
)
def test_moments_that_an_optimizer_can_make_nothing_of_are_refused(saved: str, wanted: str):
    with pytest.raises(
        ConfigError,
        match=rf"optimization.optimizer={wanted}: the checkpoint has the moments of {saved}, .*"
        rf"\(hint: set optimization.optimizer: {saved}, or start over with checkpoint.resumeFrom: None\)",
    ):
        gone_on(trained_by(saved), wanted)


def test_muon_goes_on_from_its_own():
    saved = trained_by("Muon")
    assert all(float(change.abs().max()) > 0 for change in gone_on(saved, "Muon").values())
