import math

import numpy as np
import pytest
import torch

from deepseek_trainer.contract.optimization import OptimizationSpec, Precision
from deepseek_trainer.evaluation.evaluate import evaluate_loss
from deepseek_trainer.model.precision import autocast
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import CausalLoss, causal_loss, perplexity
from support.builders.model import VOCAB, a_batch, tiny_model


class FiveRows:
    """Rows with different numbers of learned tokens."""

    def __len__(self):
        return 5

    def sample(self, limit):
        return np.arange(min(5, limit))

    def batch(self, indices, draws=None):
        whole = a_batch(num_rows=5)
        rows = list(indices)
        given = (whole.tokens_BT, whole.targets_BT, whole.position_ids_BT, whole.document_ids_BT)
        return TokenBatch(*(each_BT[rows] for each_BT in given))


def a_loss(model, token_bytes=None):
    return CausalLoss(model, autocast(Precision.FP32, torch.device("cpu")), OptimizationSpec(), token_bytes)


def evaluated(world_size, *, max_rows=100, batch_size=2, model=None, before_batch=lambda: None, token_bytes=None):
    """What all ranks agree on, computed one rank after the other."""
    parts = []
    model = model or tiny_model()

    def collect(values):
        parts.append(values)
        return [sum(column) for column in zip(*parts, strict=True)]

    results = [
        evaluate_loss(
            a_loss(model, token_bytes),
            FiveRows(),
            max_rows=max_rows,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            reduce=collect,
            before_batch=before_batch,
        )
        for rank in range(world_size)
    ]
    return results[-1]  # the last rank has seen the sum over all


def test_evaluation_is_the_mean_over_tokens_not_over_rows():
    loss_sum, num_targets = causal_loss(tiny_model(), a_batch(num_rows=5))
    result = evaluated(world_size=1)
    assert result.loss == pytest.approx(float(loss_sum.detach()) / num_targets, rel=1e-5)
    assert result.figures["perplexity"] == pytest.approx(math.exp(result.loss))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_evaluation_is_the_same_for_any_number_of_ranks(world_size):
    assert evaluated(world_size).loss == pytest.approx(evaluated(world_size=1).loss, rel=1e-6)


def test_evaluation_reads_no_more_than_max_rows():
    loss_sum, num_targets = causal_loss(tiny_model(), FiveRows().batch([0, 1]))
    assert evaluated(world_size=2, max_rows=2).loss == pytest.approx(float(loss_sum.detach()) / num_targets, rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_bits_per_byte_divide_the_whole_loss_by_the_bytes_of_the_learned_tokens(world_size):
    batch, token_bytes = FiveRows().batch([0, 1, 2]), torch.arange(VOCAB) % 5
    size = sum(int(token_bytes[token]) for token in batch.targets_BT.flatten().tolist() if token != -100)
    bits = float(causal_loss(tiny_model(), batch)[0].detach()) / math.log(2)
    result = evaluated(world_size, max_rows=3, token_bytes=token_bytes)
    assert result.figures["bitsPerByte"] == pytest.approx(bits / size, rel=1e-5)


def test_without_bytes_there_are_no_bits_per_byte():
    assert evaluated(world_size=2).figures["bitsPerByte"] is None
    assert evaluated(world_size=2, token_bytes=torch.zeros(VOCAB, dtype=torch.int64)).figures["bitsPerByte"] is None


@pytest.mark.parametrize(
    ("world_size", "batch_size", "rounds"), [(1, 2, 3), (2, 1, 3), (2, 2, 2), (3, 1, 2), (7, 2, 1)]
)
def test_every_rank_asks_equally_often_whether_to_go_on(world_size, batch_size, rounds):
    asked = []
    evaluated(world_size, batch_size=batch_size, before_batch=lambda: asked.append(1))
    assert len(asked) == rounds * world_size


def test_an_evaluation_that_is_given_up_leaves_the_model_in_training_mode():
    model = tiny_model().train()
    with pytest.raises(ZeroDivisionError):
        evaluated(world_size=1, model=model, before_batch=lambda: 1 / 0)
    assert model.training


@pytest.mark.parametrize(("loss", "expected"), [(1.0, math.e), (700.0, None), (math.inf, None), (math.nan, None)])
def test_perplexity_is_a_number_that_json_can_hold_or_none(loss, expected):
    assert perplexity(loss) == expected


def test_evaluation_leaves_the_model_in_training_mode():
    model = tiny_model().train()
    evaluate_loss(a_loss(model), FiveRows(), max_rows=1, batch_size=1, rank=0, world_size=1, reduce=list)
    assert model.training
