"""The loss and gradients are those of torch's cross entropy over all logits at once."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_trainer.base_model.families.family import Logits
from deepseek_trainer.model.cross_entropy import summed_cross_entropy
from deepseek_trainer.model.logits import shaped

POSITIONS, WIDTH, VOCAB, SCALE = 21, 8, 50, 0.37
Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(dtype: torch.dtype = torch.float32) -> Inputs:
    """Hidden states, weight, bias: leaves with gradients."""
    random = torch.Generator().manual_seed(0)
    shapes = (POSITIONS, WIDTH), (VOCAB, WIDTH), (VOCAB,)
    hidden, weight, bias = (torch.randn(s, generator=random).to(dtype).requires_grad_() for s in shapes)
    return hidden, weight, bias


TARGETS = torch.randint(VOCAB, (POSITIONS,), generator=torch.Generator().manual_seed(1))


def ours(of: Inputs, targets: Tensor = TARGETS, smoothing: float = 0.0, rows: int = 4) -> Tensor:
    return summed_cross_entropy(*of, targets, smoothing=smoothing, rows=rows)


def torchs(of: Inputs, targets: Tensor = TARGETS, smoothing: float = 0.0) -> Tensor:
    return cross_entropy(linear(*of), targets, reduction="sum", label_smoothing=smoothing)


def found(loss: Tensor, of: Inputs) -> list[Tensor]:
    """The loss, and gradients of a multiple of it."""
    return [loss.detach(), *torch.autograd.grad(loss * SCALE, of)]


def errors(these: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(these, exact, strict=True)]


@pytest.mark.parametrize("rows", [1, 4, POSITIONS, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_exact_however_many_positions_a_part_has(smoothing: float, rows: int):
    doubles, singles = inputs(torch.double), inputs()
    exact = found(torchs(doubles, smoothing=smoothing), doubles)
    assert max(errors(found(ours(doubles, smoothing=smoothing, rows=rows), doubles), exact)) < 1e-14
    assert max(errors(found(ours(singles, smoothing=smoothing, rows=rows), singles), exact)) < 1e-6


def test_the_gradient_is_the_slope():
    hidden, weight, bias = (each.detach() for each in inputs(torch.double))
    assert torch.autograd.gradcheck(
        lambda moved: ours((moved, weight, bias), smoothing=0.1), hidden.requires_grad_()
    )  # the others' are those of torch


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_errors_are_no_larger_than_those_of_torch(dtype: torch.dtype, smoothing: float):
    doubles, singles = inputs(torch.double), inputs()
    exact = found(torchs(doubles, smoothing=smoothing), doubles)
    with torch.autocast("cpu", dtype):
        loss, other = ours(singles, smoothing=smoothing), torchs(singles, smoothing=smoothing)
    assert loss.dtype is torch.float32
    mine, theirs = (errors(found(each, singles), exact) for each in (loss, other))
    assert all(one < 1.5 * another + 1e-7 for one, another in zip(mine, theirs, strict=True)), (mine, theirs)


def test_small_gradients_do_not_vanish_in_fp16():
    """Other tokens have a probability of 1.5e-8; half of the smallest number of FP16 is 3e-8."""
    weight = torch.zeros(VOCAB, WIDTH)
    weight[:, 1], weight[TARGETS[0]] = 1, 19 / WIDTH  # logits of 1 and 19
    hidden = torch.ones(1, WIDTH, requires_grad=True)
    of = hidden, weight.requires_grad_(), torch.zeros(VOCAB, requires_grad=True)
    doubles: Any = tuple(each.detach().double().requires_grad_() for each in of)
    exact = found(torchs(doubles, TARGETS[:1]), doubles)
    with torch.autocast("cpu", torch.float16):
        loss = ours(of, TARGETS[:1])
    # Of hidden states and bias; a part's sums for the weight are rounded to FP16 as they are.
    assert max(errors(found(loss, of)[1::2], exact[1::2])) < 0.1


class Watch(TorchDispatchMode):
    """Counts the matrices of logits that are multiplied out, and knows the largest that there was."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == VOCAB:
            self.products += function._opname in ("addmm", "mm")
            self.largest = max(self.largest, 0 if function._opname == "t" else len(result))
        return result


def test_logits_are_made_once_and_a_part_at_a_time():
    hidden, weight, bias = inputs()
    with Watch() as watch:
        ours((hidden, weight, bias), rows=4).backward()
    assert (watch.products, watch.largest) == (6, 4)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, bias = inputs()
    (expected,) = torch.autograd.grad(torchs((hidden, weight, bias)), hidden)
    frozen = weight.detach(), bias.detach()
    ours((hidden, *frozen)).backward()
    torch.testing.assert_close(hidden.grad, expected)
    assert [each.grad for each in frozen] == [None, None]


@pytest.mark.parametrize("is_bf16", [False, True])
def test_without_gradients_the_loss_is_the_same_to_the_last_bit(is_bf16: bool):
    of = inputs()
    with torch.autocast("cpu", torch.bfloat16) if is_bf16 else nullcontext():
        learned = ours(of, smoothing=0.1)
        with torch.no_grad():
            evaluated = ours(of, smoothing=0.1)
    assert torch.equal(learned, evaluated)
    assert not evaluated.requires_grad


def test_no_position_is_a_loss_of_zero_with_gradients_of_zero():
    hidden, weight, bias = inputs()
    none = hidden.detach()[:0].requires_grad_()
    loss = ours((none, weight, bias), TARGETS[:0])
    loss.backward()
    assert float(loss.detach()) == 0
    assert [float(each.grad.abs().sum()) for each in (weight, bias)] == [0, 0]
    assert none.grad.shape == (0, WIDTH)


def test_a_second_backward_pass_is_refused():
    loss = ours(inputs())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("rows", [4, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("how", [Logits(scale=0.25), Logits(softcap=1.5), Logits(scale=3.0, softcap=2.0)], ids=str)
def test_logits_that_a_model_scales_or_bounds_are_learned_exactly(how: Logits, smoothing: float, rows: int):
    doubles = inputs(torch.double)
    bounded = shaped(linear(*doubles), how)
    exact = found(cross_entropy(bounded, TARGETS, reduction="sum", label_smoothing=smoothing), doubles)
    again = summed_cross_entropy(*doubles, TARGETS, smoothing=smoothing, rows=rows, logits=how)
    assert max(errors(found(again, doubles), exact)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bounded_logits_of_two_bytes_are_learned_within_their_rounding(dtype: torch.dtype):
    how, doubles, singles = Logits(softcap=1.5), inputs(torch.double), inputs()
    exact = found(cross_entropy(shaped(linear(*doubles), how), TARGETS, reduction="sum"), doubles)
    with torch.autocast("cpu", dtype=dtype):
        loss = summed_cross_entropy(*singles, TARGETS, smoothing=0.0, rows=4, logits=how)
    assert max(errors(found(loss, singles), exact)) < 8 * torch.finfo(dtype).eps
