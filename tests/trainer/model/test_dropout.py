"""Dropout in training: where it acts, and that what it drops follows from a row and a place, and from nothing else."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepseek_trainer.contract.method import LoraSpec
from deepseek_trainer.contract.optimization import Recompute
from deepseek_trainer.model.adapters import with_adapters
from deepseek_trainer.model.dropout import RowDropout, drop_out, dropped, rows_drawn
from deepseek_trainer.model.modes import answering
from deepseek_trainer.model.recompute import recompute_activations
from deepseek_trainer.tasks.language.loss import causal_loss
from support.builders.loop import a_loop, a_model, an_adapted_model, config, run_until_stopped, weights
from support.builders.model import a_batch, tiny_model

FAMILIES = ["llama", "qwen2", "qwen3"]
NUMBERS = np.array([3, 2**63 + 1, 77], np.uint64)


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def dropping(kind: str = "llama", rate: float = 0.3, **changes: Any) -> Any:
    model = tiny_model(kind, **changes)
    drop_out(model, rate)
    return model.train()


def adapted(dropout: float = 0.3) -> Any:
    """With adapters that make a difference."""
    model = with_adapters(tiny_model(), LoraSpec(rank=4, dropout=dropout), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.1)
    return model.train()


def masks(numbers: Any, width: int = 64, *, positions: int = 32, rate: float = 0.5, place: int = 0) -> Tensor:
    """What is kept, bool (B, positions, width)."""
    with rows_drawn(numbers):
        return dropped(torch.ones(len(numbers), positions, width), rate, place) != 0


def hidden(model: Any, rows: slice = slice(None), numbers: Any = NUMBERS) -> Tensor:
    """What the decoder makes of some rows of a batch of three."""
    with rows_drawn(numbers[rows]):
        return model.get_decoder()(a_batch(3).tokens_BT[rows], use_cache=False).last_hidden_state


def shares_of_zeros(model: Any) -> dict[str, float]:
    """Of the outputs of the embedding and of each linear layer that adds to the residual stream."""
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(
                lambda _, __, output, name=name: found.update({name: float((output == 0).float().mean())})
            )
    hidden(model)
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_share_of_embeddings_and_of_all_that_layers_add_is_zero_in_every_family(kind: str):
    found = shares_of_zeros(dropping(kind))
    assert len(found) == 1 + 2 * len(tiny_model(kind).model.layers)
    assert all(share == pytest.approx(0.3, abs=0.1) for share in found.values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_evaluation_and_answers_drop_nothing_and_need_no_numbers(kind: str):
    model = dropping(kind)
    plain = tiny_model(kind).eval()
    batch = a_batch()
    with answering(model):
        assert torch.equal(causal_loss(model, batch)[0], causal_loss(plain, batch)[0])
    with rows_drawn(NUMBERS):
        assert not torch.equal(causal_loss(model, batch)[0], causal_loss(plain, batch)[0])


@pytest.mark.parametrize("kind", FAMILIES)
def test_nothing_else_is_dropped_whatever_config_json_says_and_no_global_stream_is_drawn_from(kind: str):
    batch, plain = a_batch(), tiny_model(kind)
    silenced = dropping(kind, rate=0.0, attention_dropout=0.5)
    models = [dropping(kind, attention_dropout=0.5), adapted()]
    before = torch.get_rng_state()
    assert torch.equal(causal_loss(silenced, batch)[0], causal_loss(plain, batch)[0])
    with rows_drawn(NUMBERS):
        for model in models:
            causal_loss(model, batch)[0].backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert silenced.config.attention_dropout == 0.5, "the exported config.json is the base's"


@given(rate=st.floats(0.001, 0.99), number=st.integers(0, 2**64 - 1), place=st.integers(0, 1000))
def test_the_share_is_as_asked_and_the_others_are_scaled_up_so_that_the_mean_stays(
    rate: float, number: int, place: int
):
    with rows_drawn(np.array([number], np.uint64)):
        found = dropped(torch.ones(1, 128, 256), rate, place)
    kept = found[found != 0]
    count, deviation = found.numel(), math.sqrt(found.numel() * rate * (1 - rate))
    assert abs(len(kept) - count * (1 - rate)) < 6 * deviation + count / 65536
    assert kept.unique().tolist() == pytest.approx([1 / (1 - rate)], rel=1e-3)


def test_a_row_drops_in_any_batch_what_it_drops_alone():
    model = dropping()
    whole = hidden(model)
    for rows in (slice(0, 1), slice(1, 3)):
        torch.testing.assert_close(hidden(model, rows), whole[rows], rtol=1e-5, atol=1e-6)
    found = masks(NUMBERS)
    assert all(torch.equal(masks(NUMBERS[i : i + 1])[0], found[i]) for i in range(3))
    assert torch.equal(masks(NUMBERS, positions=8), found[:, :8]), "nor does it depend on what comes after"


def test_adapters_drop_by_rows_too():
    model = adapted()
    assert sum(isinstance(module, RowDropout) for module in model.modules()) == 4, "of q_proj and v_proj, twice"
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    inner = model.get_base_model()
    whole = hidden(inner)
    torch.testing.assert_close(hidden(inner, slice(1, 2)), whole[1:2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(whole, hidden(inner, numbers=NUMBERS[::-1].copy()))
    assert not torch.allclose(whole, hidden(adapted(0.0).get_base_model()))


def correlation(one: Tensor, other: Tensor) -> float:
    """In standard deviations of what chance gives."""
    signs = (one.double() * 2 - 1) * (other.double() * 2 - 1)
    return abs(float(signs.mean()) * math.sqrt(signs.numel()))


def test_rows_places_positions_and_elements_are_independent_of_each_other():
    numbers = np.arange(8, dtype=np.uint64)  # that differ in their last bits only
    found, elsewhere = (masks(numbers, 512, positions=128, place=place) for place in (0, 1))
    assert correlation(found, torch.ones_like(found)) < 5
    assert correlation(found, elsewhere) < 5
    assert correlation(found[1:], found[:-1]) < 5
    assert correlation(found[:, 1:], found[:, :-1]) < 5
    for distance in (1, 2, 3, 255):
        assert correlation(found[..., distance:], found[..., :-distance]) < 5
    corners = found[:, 1:, 1:] ^ found[:, 1:, :-1] ^ found[:, :-1, 1:]
    assert correlation(corners, found[:, :-1, :-1]) < 5


def test_no_row_and_no_place_drops_what_another_does():
    numbers = np.concatenate([np.arange(50), np.arange(50) << 32]).astype(np.uint64)[1:]  # without the second 0
    found = [mask.numpy().tobytes() for place in range(20) for mask in masks(numbers, place=place)]
    assert len(set(found)) == len(found) == 20 * 99


@pytest.mark.parametrize("frequencies", [(2,), (1, 2)], ids=["elements", "positions and elements"])
def test_masks_have_no_period(frequencies: tuple[int, ...]):
    """The largest of n powers of a spectrum of noise is about log n, and above it by 12 once in 100,000 times."""
    signs = masks(NUMBERS, 512, positions=256).float() * 2 - 1
    powers = torch.fft.fftn(signs, dim=frequencies, norm="ortho").abs().square()
    assert float(powers.max()) < math.log(powers.numel()) + 12


def by_numpy(number: int, positions: int, width: int, place: int) -> Any:
    """The words of `dropout._uniform` for an even width, by the unsigned arithmetic of another library."""
    u = np.uint32

    def mixed(x: Any) -> Any:
        x = (x ^ (x >> u(16))) * u(0x7FEB352D)
        x = (x ^ (x >> u(15))) * u(0x846CA68B)
        return x ^ (x >> u(16))

    low, high = (np.array([part], u) for part in (number & 0xFFFFFFFF, number >> 32))
    first = mixed(mixed(np.arange(positions, dtype=u) * u(0x9E3779B9) + low) + high)
    second = mixed(first + low) | u(1)
    line = (first + second * u(place << 16))[:, None] + second[:, None] * np.arange(width // 2, dtype=u)
    word = line + u(2) * line * line
    word += (word.view(np.int32) >> 16).view(u)
    return (word + u(2) * word * word).view(np.int16)


@pytest.mark.parametrize("number", [0, 5, 2**64 - 1, 0x0123456789ABCDEF])
def test_masks_are_plain_arithmetic_of_32_bits_the_same_on_every_device(number: int):
    numbers, rate = np.array([number], np.uint64), 0.1
    expected = by_numpy(number, 40, 96, 7) >= round(rate * 65536) - 32768
    assert np.array_equal(masks(numbers, 96, positions=40, rate=rate, place=7)[0].numpy(), expected)


def test_masks_stay_what_they_are_since_runs_are_resumed_by_later_versions():
    found = np.packbits(masks(NUMBERS, 33, rate=0.25, place=3).numpy())
    assert hashlib.sha256(found).hexdigest()[:16] == "cc2474f6e2c99379"


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 7), (2, 3, 4, 5)], ids=["vectors", "an odd width", "images"])
def test_rows_of_any_shape_are_dropped_from(shape: tuple[int, ...]):
    with rows_drawn(torch.tensor([1, 2])):
        found = dropped(torch.ones(shape), 0.5, 0)
    assert found.shape == shape
    assert set(found.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("numbers", [None, NUMBERS[:2]], ids=["none", "of two rows"])
def test_a_model_that_trains_without_the_numbers_of_its_rows_is_refused(numbers: Any):
    with rows_drawn(numbers), pytest.raises(RuntimeError, match=r"within rows_drawn|3 rows and the numbers of 2"):
        causal_loss(dropping(), a_batch(3))


def test_numbers_are_forgotten_after_the_pass_that_they_are_of():
    with pytest.raises(ValueError, match="in between"), rows_drawn(NUMBERS):
        raise ValueError("in between")
    with pytest.raises(RuntimeError, match="within rows_drawn"):
        causal_loss(dropping(), a_batch(3))


def gradients(model: Any, parts: list[slice]) -> Tensor:
    """Of all parts, whose forward passes come before the first backward pass."""
    losses = [hidden(model, rows).square().sum() for rows in parts]
    for loss in losses:
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("recompute", [Recompute.SELECTIVE, Recompute.FULL])
@pytest.mark.parametrize("made", [dropping, lambda: adapted().get_base_model()], ids=["all weights", "adapters"])
def test_a_backward_pass_that_computes_again_drops_the_same_after_other_rows_were_seen(made: Any, recompute: Recompute):
    parts = [slice(0, 1), slice(1, 3)]
    plain, again = made(), made()
    recompute_activations(again, recompute)
    assert torch.equal(gradients(plain, parts), gradients(again, parts))


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.FULL])
def test_a_compiled_model_drops_the_same(recompute: Recompute):
    """Traced and not turned into code, which takes minutes."""
    plain, traced = dropping(), dropping()
    recompute_activations(traced, recompute)
    traced.model.compile(backend="aot_eager")
    torch.testing.assert_close(gradients(plain, [slice(0, 3)]), gradients(traced, [slice(0, 3)]))


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


@pytest.mark.parametrize(("made", "rate"), [(a_model, 0.3), (an_adapted_model, 0.0)], ids=["all weights", "adapters"])
def test_a_run_drops_the_same_in_micro_batches_of_any_size(tmp_path: Path, made: Any, rate: float):
    losses = []
    for size in (1, 2, 4):
        loop = a_loop(config(dropout=rate, microBatchSize=size), tmp_path / str(size), model=made())
        loop.run()
        losses.append(loop.reporter.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


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
