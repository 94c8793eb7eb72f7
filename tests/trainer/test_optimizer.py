"""The optimizer's state leaves and comes back by parameter name, to where its kernels read it."""

import pytest
import torch
from torch import nn

from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.optimizer import adamw, load_state_by_name, state_by_name


def a_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(7)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_a_loaded_optimizer_goes_on_as_the_saved_one_would_have(fused: bool):
    model, other = a_model(), a_model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    reordered = torch.optim.AdamW([*other.parameters()][::-1], fused=fused)
    train(model, optimizer)
    other.load_state_dict(model.state_dict())
    load_state_by_name(other, reordered, state_by_name(model, optimizer))
    for _ in range(2):
        train(model, optimizer)
        train(other, reordered)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_loaded_state_shares_no_memory_with_what_it_came_from():
    model = a_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    state = state_by_name(model, optimizer)
    fresh = torch.optim.AdamW(model.parameters())
    load_state_by_name(model, fresh, state)
    train(model, fresh)
    assert {float(entry["step"]) for entry in state.values()} == {1.0}
    assert {float(entry["step"]) for entry in fresh.state.values()} == {2.0}


@pytest.mark.parametrize(("capturable", "place"), [(True, "meta"), (False, "cpu")])
def test_the_step_counter_lies_where_the_kernels_of_the_optimizer_read_it(capturable: bool, place: str):
    """The meta device stands for a GPU; capturable kernels read the step there, as fused ones do."""
    saved = a_model()
    optimizer = torch.optim.AdamW(saved.parameters())
    train(saved, optimizer)
    model = a_model().to("meta")
    other = torch.optim.AdamW(model.parameters(), capturable=capturable)
    load_state_by_name(model, other, state_by_name(saved, optimizer))
    assert {entry["step"].device.type for entry in other.state.values()} == {place}
    assert {entry["exp_avg"].device.type for entry in other.state.values()} == {"meta"}


def test_matrices_and_embeddings_decay_and_biases_do_not():
    model = a_model()
    groups = adamw(model, OptimizationSpec(weight_decay=0.1)).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    named = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert named == {"0.weight": 0.1, "1.weight": 0.1, "1.bias": 0.0}
