"""The optimizer's state leaves and comes back by parameter name, to where its kernels read it."""

import pytest
import torch
from torch import nn

from deepseek_trainer.contract.optimization import OptimizationSpec, Optimizer
from deepseek_trainer.training.optimizer import load_state_by_name, optimizers, state_by_name
from support.builders.loop import a_model as a_llama


def a_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(7)).square().sum().backward()
    optimizer.step()


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_a_loaded_optimizer_goes_on_as_the_saved_one_would_have(fused: bool):
    model, other = a_model(), a_model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    reordered = torch.optim.AdamW([*other.parameters()][::-1], fused=fused)
    train(model, optimizer)
    other.load_state_dict(model.state_dict())
    load_state_by_name(named(other), [reordered], state_by_name(named(model), [optimizer]))
    for _ in range(2):
        train(model, optimizer)
        train(other, reordered)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_loaded_state_shares_no_memory_with_what_it_came_from():
    model = a_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    state = state_by_name(named(model), [optimizer])
    fresh = torch.optim.AdamW(model.parameters())
    load_state_by_name(named(model), [fresh], state)
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
    load_state_by_name(named(model), [other], state_by_name(named(saved), [optimizer]))
    assert {entry["step"].device.type for entry in other.state.values()} == {place}
    assert {entry["exp_avg"].device.type for entry in other.state.values()} == {"meta"}


def test_matrices_and_embeddings_decay_and_biases_do_not():
    model = a_model()
    (adamw,) = optimizers(model, OptimizationSpec(weight_decay=0.1))
    groups = adamw.param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    named = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert named == {"0.weight": 0.1, "1.weight": 0.1, "1.bias": 0.0}


def test_muon_steps_the_decoders_matrices_and_adamw_embeddings_head_and_norms():
    model = a_llama()
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, adamw = optimizers(model, OptimizationSpec(optimizer="Muon"))
    steps = [{names[p] for group in part.param_groups for p in group["params"]} for part in (muon, adamw)]
    assert all(".self_attn." in name or ".mlp." in name for name in steps[0])
    assert steps[1] == {name for name in names.values() if "norm" in name or "embed" in name or "lm_head" in name}


def test_every_trainable_parameter_is_stepped_once():
    model = a_llama()
    for kind in Optimizer:
        groups = [group for part in optimizers(model, OptimizationSpec(optimizer=kind)) for group in part.param_groups]
        stepped = [id(p) for group in groups for p in group["params"]]
        assert sorted(stepped) == sorted(id(p) for p in model.parameters())


def test_moments_of_eight_bits_take_a_quarter_and_go_on_as_they_were():
    def trained(model: nn.Module, parts: list[torch.optim.Optimizer]) -> torch.Tensor:
        for _ in range(2):
            model(torch.ones(1, 128)).sum().backward()
            parts[0].step()
            parts[0].zero_grad()
        return model.weight.detach().clone()

    model, spec = nn.Linear(128, 128, bias=False), OptimizationSpec(optimizer="AdamW8bit", learning_rate=0.1)
    parts = optimizers(model, spec)
    trained(model, parts)
    state = {name: dict(entry) for name, entry in state_by_name(named(model), parts).items()}
    assert state["weight"]["state1"].dtype is torch.uint8
    other = nn.Linear(128, 128, bias=False)
    other.load_state_dict(model.state_dict())
    again = optimizers(other, spec)
    load_state_by_name(named(other), again, state)
    assert torch.equal(trained(other, again), trained(model, parts))
