"""Where experts get their tokens, what is done about it, and that nothing repeats or loses a count."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from deepseek_trainer.contract.optimization import OptimizationSpec, Recompute
from deepseek_trainer.model.blocks import routers
from deepseek_trainer.model.dropout import drop_out, rows_drawn
from deepseek_trainer.model.modes import answering
from deepseek_trainer.model.recompute import recompute_activations
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import CausalLoss
from support.builders.experts import KINDS, a_mixture
from support.builders.model import a_batch

CPU = torch.autocast("cpu", enabled=False)


def a_loss(model: nn.Module) -> CausalLoss:
    return CausalLoss(model.train(), CPU, OptimizationSpec())


def padded(batch: TokenBatch, length: int) -> TokenBatch:
    """The last `length` positions of each row are padding: a document of its own, of which nothing is learned."""
    documents, targets = batch.document_ids_BT.clone(), batch.targets_BT.clone()
    documents[:, -length:], targets[:, -length:] = 1, -100
    targets[:, 0] = 5
    return TokenBatch(batch.tokens_BT, targets, batch.position_ids_BT, documents)


def chosen_by(model: nn.Module, batch: TokenBatch) -> list[torch.Tensor]:
    """How often each router chose each expert, by hooks of this test's own."""
    counts: list[torch.Tensor] = []

    def count(_: nn.Module, __: object, output: tuple[torch.Tensor, ...]) -> None:
        kept = output[2].view(*batch.tokens_BT.shape, -1)[batch.is_token_BT]
        counts.append(torch.bincount(kept.flatten(), minlength=4).double())

    hooks = [router.register_forward_hook(count) for router in routers(model)]
    a_loss(model)(batch)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_counts_once_for_each_of_its_experts_and_padding_not_at_all(kind):
    model, batch = a_mixture(kind), padded(a_batch(), 5)
    expected = chosen_by(model, batch)
    loss = a_loss(model)
    loss(batch)
    assert [load.tolist() for load in loss.routing.loads] == [count.tolist() for count in expected]
    assert all(load.sum() == 2 * batch.size == 2 * 3 * 11 for load in loss.routing.loads)


@pytest.mark.parametrize("recompute", [Recompute.FULL, Recompute.SELECTIVE])
def test_recomputed_passes_route_and_learn_as_the_first_and_count_nothing(recompute):
    plain, again = a_mixture("deepseek_v3"), a_mixture("deepseek_v3")
    recompute_activations(again, recompute)
    losses = [a_loss(plain), a_loss(again)]
    for loss in losses:
        for batch in (a_batch(seed=1), a_batch(seed=2)):
            loss(batch).backward()
    assert [load.tolist() for load in losses[0].routing.loads] == [load.tolist() for load in losses[1].routing.loads]
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_an_evaluation_adds_the_loads_to_its_measures_and_leaves_those_of_training_alone():
    loss, batch = a_loss(a_mixture("deepseek_v3")), a_batch()
    with answering(loss.model):
        mean, *loads = loss(batch).tolist()
    assert loss.routing.measures == ("load/0/0", "load/0/1", "load/0/2", "load/0/3")
    assert sum(loads) == 2 * batch.size
    assert sum(load.sum() for load in loss.routing.loads) == 0
    assert mean == pytest.approx(float(a_loss(a_mixture("deepseek_v3"))(batch).detach()), rel=1e-6)


@pytest.mark.parametrize(
    ("loads", "busiest", "idle"), [([3, 3, 3, 3], 1, 0), ([6, 6, 0, 0], 2, 2), ([9, 1, 1, 1], 3, 0)]
)
def test_figures_are_the_busiest_experts_multiple_of_an_even_load_and_the_number_of_idle_ones(loads, busiest, idle):
    routing = a_loss(a_mixture("deepseek_v3")).routing
    found = routing.figures({f"load/0/{i}": load for i, load in enumerate(loads)})
    assert found == {"busiestExpert": busiest, "idleExperts": idle}


def test_a_dense_model_has_no_loads():
    from support.builders.model import tiny_model

    loss = a_loss(tiny_model())
    loss(a_batch())
    assert (loss.routing.measures, loss.routing.figures({}), loss.routing.loads) == ((), {}, [])


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe", "mixtral"])
def test_the_auxiliary_loss_of_a_row_is_that_of_transformers(kind):
    loss = a_loss(a_mixture(kind, output_router_logits=True, router_aux_loss_coef=0.25))
    batch = a_batch(1)
    logits = loss.model(batch.tokens_BT, output_router_logits=True).router_logits
    expected = 0.25 * load_balancing_loss_func(logits, 4, 2) * batch.num_targets
    plain = a_loss(a_mixture(kind))
    assert plain.routing.coefficient == 0
    assert float(loss(batch) - plain(batch)) == pytest.approx(float(expected), rel=1e-4)
    loss(batch).backward()
    plain(batch).backward()
    gradients = [routers(each.model)[0].weight.grad for each in (loss, plain)]
    assert not torch.allclose(*gradients)


def test_micro_batches_change_nothing_of_the_auxiliary_loss_and_held_out_losses_are_without_it():
    whole = a_loss(a_mixture("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.25))
    batch = padded(a_batch(), 5)
    rows = [
        TokenBatch(
            *(part[i : i + 1] for part in (batch.tokens_BT, batch.targets_BT)),
            *(part[i : i + 1] for part in (batch.position_ids_BT, batch.document_ids_BT)),
        )
        for i in range(3)
    ]
    assert float(sum(whole(row) for row in rows)) == pytest.approx(float(whole(batch)), rel=1e-5)
    with answering(whole.model):
        held_out = float(whole(batch)[0])
    assert held_out == pytest.approx(float(a_loss(a_mixture("qwen3_moe"))(batch)), rel=1e-5)
    assert held_out < float(whole(batch)) - 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_drops_what_attention_and_experts_add_and_follows_from_the_rows(kind):
    model = a_mixture(kind)
    drop_out(model, 0.5)
    loss, batch = a_loss(model), a_batch()
    drawn = [torch.arange(3), torch.arange(3), torch.arange(3, 6)]
    found = []
    for numbers in drawn:
        with rows_drawn(numbers):
            found.append(float(loss.summed(batch)))
    assert found[0] == found[1] != found[2]


def test_experts_compute_in_the_dtype_of_autocast_and_learn_in_fp32():
    model, batch = a_mixture("deepseek_v3"), a_batch()
    seen: list[torch.dtype] = []
    experts = model.model.layers[1].mlp.experts
    experts.act_fn = nn.SiLU()
    experts.act_fn.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            model(batch.tokens_BT).logits.float().sum().backward()
    assert seen == [torch.float32, torch.bfloat16]
    assert experts.down_proj.grad.dtype is torch.float32
