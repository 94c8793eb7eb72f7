"""What chance does to an image: it follows from the row's numbers, and from nothing else in the batch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_trainer.contract.images import Augmentation
from deepseek_trainer.data.draws import Draws, numbers_at
from deepseek_trainer.tasks.images.augment import augmented
from deepseek_trainer.tasks.images.batch import ImageBatch, collate
from deepseek_trainer.tasks.images.chance import mixing
from deepseek_trainer.tasks.images.preparation import dtype_of
from support.builders.images import ALL_AUGMENTATION, a_picture

ALL = Augmentation.model_validate(ALL_AUGMENTATION)
HEIGHT, WIDTH = 12, 16


def rows(count: int, shape: tuple[int, int, int] = (HEIGHT, WIDTH, 3)) -> Any:
    made = np.zeros(count, dtype_of(dict(zip(("height", "width", "channels"), shape, strict=True))))
    for i in range(count):
        made[i]["pixels"], made[i]["label"] = a_picture(i, shape=shape), i
    return made


EVERY = rows(16)
PARTNERS = (np.arange(16) + 5) % 16


def batch_of(indices: list[int], spec: Augmentation = ALL, seed: int = 5) -> ImageBatch:
    """The rows at these positions, each of which has a partner wherever it is."""
    picked = np.array(indices)
    numbers = numbers_at(seed, np.arange(16))
    others = PARTNERS[picked]
    return collate(EVERY[picked], Draws(numbers[picked], lambda: (EVERY[others], numbers[others])), spec)


def by(**fields: float) -> Augmentation:
    return Augmentation(**fields)


def changed(indices: list[int], spec: Augmentation, seed: int = 5) -> Tensor:
    return augmented(batch_of(indices, spec, seed))


def plain(indices: list[int]) -> Tensor:
    return augmented(collate(EVERY[indices], None, ALL))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=16, unique=True), st.integers(0, 3))
def test_an_image_is_changed_alike_in_whatever_batch_it_is(indices: list[int], seed: int):
    together, whole = batch_of(indices, seed=seed), batch_of(list(range(16)), seed=seed)
    assert together.share_B is not None
    assert whole.share_B is not None
    assert torch.equal(augmented(together), augmented(whole)[indices])
    assert torch.equal(together.share_B, whole.share_B[indices])
    for own in (together.labels_N[: len(indices)], together.labels_N[len(indices) :]):
        assert len(own) == len(indices)


def test_another_seed_and_another_position_change_an_image_otherwise():
    first, again, other = (changed([3], ALL, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    numbers = numbers_at(5, np.arange(2))
    same_row = EVERY[[0, 0]]
    two = augmented(collate(same_row, Draws(numbers, lambda: (same_row, numbers)), by(rotation_degrees=20.0)))
    assert not torch.equal(two[0], two[1])


def test_no_global_random_stream_is_read():
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    changed([1, 2, 3], ALL)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]


def test_an_evaluation_sees_images_as_they_are():
    expected = torch.from_numpy(EVERY["pixels"]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(plain(list(range(16))), expected)


def test_a_quarter_turn_is_one_also_where_an_image_is_no_square():
    shape = (8, 16, 1)
    row, numbers = rows(1, shape), numbers_at(0, np.arange(1))
    batch = collate(row, Draws(numbers, lambda: (row, numbers)), by(rotation_degrees=90.0))
    assert batch.moves_N23 is not None
    quarter = torch.tensor([[[0.0, -8 / 16, 0.0], [16 / 8, 0.0, 0.0]]])
    object.__setattr__(batch, "moves_N23", quarter)
    turned = augmented(batch)[0, 0]
    original = torch.from_numpy(row["pixels"][0, :, :, 0]).float() / 255
    inner = torch.rot90(original[:, 4:12], 1)  # the square in the middle stays in the picture
    assert torch.allclose(turned[:, 4:12], inner, atol=1e-5)


def test_a_shift_moves_pixels_and_repeats_the_edge():
    batch = batch_of([0], by(shift=0.5))
    object.__setattr__(batch, "moves_N23", torch.tensor([[[1.0, 0.0, 2 * 2 / WIDTH], [0.0, 1.0, 0.0]]]))
    original = plain([0])
    moved = augmented(batch)
    assert torch.allclose(moved[..., :-2], original[..., 2:], atol=1e-5)
    assert torch.allclose(moved[..., -2:], original[..., -1:].expand(-1, -1, -1, 2), atol=1e-5)


@pytest.mark.parametrize(("field", "limit"), [("rotation_degrees", 30.0), ("crop", 0.5), ("shift", 0.25)], ids=str)
def test_moves_stay_inside_what_the_job_allows(field: str, limit: float):
    spec = by(**{field: limit})
    numbers = numbers_at(9, np.arange(4000))
    many = rows(1).repeat(4000)
    moves = collate(many, Draws(numbers, lambda: (many, numbers)), spec).moves_N23
    assert moves is not None
    kept = moves[:, 0, 0] if field != "rotation_degrees" else torch.ones(4000)
    angle = torch.rad2deg(torch.atan2(moves[:, 1, 0] * HEIGHT / WIDTH, moves[:, 0, 0]))
    reach = {"rotation_degrees": angle, "crop": kept, "shift": moves[:, :, 2] / 2}[field]
    low, high = (0.5, 1.0) if field == "crop" else (-limit, limit)
    assert low - 1e-4 <= float(reach.min()) < low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) < float(reach.max()) <= high + 1e-4
    if field == "crop":
        assert bool((moves[:, :, 2].abs() <= 1 - kept[:, None] + 1e-6).all()), "no part lies outside"


def test_brightness_and_contrast_scale_values_and_their_distance_from_the_mean():
    original = plain([0])
    batch = batch_of([0], by(brightness=0.5, contrast=0.5))
    object.__setattr__(batch, "lights_N2", torch.tensor([[0.5, 1.5]]))
    dimmed = original * 0.5
    expected = (dimmed.mean() + (dimmed - dimmed.mean()) * 1.5).clamp(0, 1)
    assert torch.allclose(augmented(batch), expected, atol=1e-6)


def test_mixup_blends_two_images_and_their_classes_by_one_share():
    batch = batch_of([0, 1, 2], by(mix_up_alpha=0.4))
    assert batch.share_B is not None
    share = batch.share_B[:, None, None, None]
    expected = plain([0, 1, 2]) * share + plain(PARTNERS[:3].tolist()) * (1 - share)
    assert torch.allclose(augmented(batch), expected, atol=1e-6)
    assert batch.labels_N.tolist() == [0, 1, 2, *PARTNERS[:3].tolist()]


def test_cutmix_takes_a_box_and_as_much_of_the_class_as_the_box_has_pixels():
    batch = batch_of(list(range(16)), by(cut_mix_alpha=1.0))
    assert batch.share_B is not None
    own, partner, mixed = plain(list(range(16))), plain(PARTNERS.tolist()), augmented(batch)
    is_partner = ((mixed == partner) & (mixed != own)).any(1)
    assert bool(((mixed == own) | (mixed == partner)).all())
    for taken, share in zip(is_partner, batch.share_B, strict=True):
        assert float(taken.float().mean()) == pytest.approx(1 - float(share), abs=0.03)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float):
    mixed = mixing(by(mix_up_alpha=alpha), numbers_at(1, np.arange(4000)), HEIGHT, WIDTH)
    assert mixed is not None
    assert float(mixed.share_B.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(mixed.share_B.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_with_both_half_of_the_images_are_blended_and_half_get_a_box():
    mixed = mixing(ALL, numbers_at(1, np.arange(4000)), HEIGHT, WIDTH)
    assert mixed is not None
    assert float((mixed.blend_B == 1).mean()) == pytest.approx(0.5, abs=0.03)
