"""Dropout in training: where it acts, where it does not, and that a resumed run draws what it would have drawn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deepseek_trainer.model.dropout import drop_out
from deepseek_trainer.model.modes import answering
from deepseek_trainer.tasks.language.loss import causal_loss
from support.builders.loop import a_loop, config, run_until_stopped, weights, with_dropout
from support.builders.loop import a_model as with_attention_dropout
from support.builders.model import a_batch, tiny_model

FAMILIES = ["llama", "qwen2", "qwen3"]


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def a_model() -> nn.Module:
    return with_dropout(with_attention_dropout(), 0.0)


def dropping(kind: str, rate: float = 0.3) -> Any:
    model = tiny_model(kind)
    drop_out(model, rate)
    return model.train()


def shares_of_zeros(model: Any) -> dict[str, float]:
    """Of the outputs of the embedding and of each linear layer that adds to the residual stream."""
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(
                lambda _, __, output, name=name: found.update({name: float((output == 0).float().mean())})
            )
    causal_loss(model, a_batch())
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_share_of_embeddings_and_of_all_that_layers_add_is_zero_in_every_family(kind: str):
    found = shares_of_zeros(dropping(kind))
    assert len(found) == 1 + 2 * len(tiny_model(kind).model.layers)
    assert all(share == pytest.approx(0.3, abs=0.1) for share in found.values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_evaluation_and_answers_drop_nothing(kind: str):
    model = dropping(kind)
    plain = tiny_model(kind).eval()
    plain.load_state_dict(model.state_dict())
    batch = a_batch()
    with answering(model):
        assert torch.equal(causal_loss(model, batch)[0], causal_loss(plain, batch)[0])
    assert not torch.equal(causal_loss(model, batch)[0], causal_loss(model, batch)[0])


def test_what_is_left_is_scaled_up_so_that_the_mean_stays():
    model = tiny_model().train()
    embedding = model.get_input_embeddings()
    ids = torch.zeros(4000, dtype=torch.int64)
    plain = embedding(ids)[0]
    drop_out(model, 0.25)
    torch.manual_seed(0)
    dropped = embedding(ids)
    torch.testing.assert_close(dropped.mean(0), plain, rtol=0.1, atol=1e-3)
    torch.testing.assert_close(dropped[dropped != 0], (plain * 4 / 3).expand_as(dropped)[dropped != 0])


def test_without_a_rate_a_model_is_left_as_it_is():
    model = tiny_model()
    drop_out(model, 0.0)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("recompute", ["None", "Selective", "Full"])
def test_a_resumed_run_drops_what_an_uninterrupted_one_would_have_dropped(tmp_path: Path, recompute: str):
    settings = config(dropout=0.3, recompute=recompute, microBatchSize=3)
    whole = a_loop(settings, tmp_path / "whole", model=a_model())
    whole.run()
    first = a_loop(settings, tmp_path / "parts", stop_after=2, model=a_model())
    run_until_stopped(first)
    torch.rand(3)  # another process has drawn something else
    second = a_loop(settings, tmp_path / "parts", model=a_model())
    second.run()
    assert first.reporter.losses + second.reporter.losses == whole.reporter.losses
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())


def test_a_run_with_dropout_is_another_than_one_without(tmp_path: Path):
    losses = []
    for rate in (0.0, 0.3):
        loop = a_loop(config(dropout=rate), tmp_path / str(rate), model=a_model())
        loop.run()
        losses.append(loop.reporter.losses)
    assert losses[0][0] != losses[1][0]


def test_an_evaluation_between_steps_changes_nothing_of_what_is_dropped(tmp_path: Path):
    losses = []
    for interval in (1, 100):
        settings = config(dropout=0.3, evaluation={"intervalSteps": interval})
        loop = a_loop(settings, tmp_path / str(interval), model=a_model())
        loop.run()
        losses.append(loop.reporter.losses)
    assert losses[0] == losses[1]
