"""What augmentation does to each image: a function of the row's numbers, and of nothing else.

Shapes: N images, B of them the rows of a batch.
"""

from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
import numpy.typing as npt

from deepseek_trainer.contract.images import Augmentation
from deepseek_trainer.data.draws import Numbers, salted, uniform

Floats = npt.NDArray[np.float32]


class Salt(IntEnum):
    """A draw of its own for each of these; their order is part of what a seed means."""

    ROTATION = 0
    CROP = auto()
    PLACE_X = auto()
    PLACE_Y = auto()
    SHIFT_X = auto()
    SHIFT_Y = auto()
    BRIGHTNESS = auto()
    CONTRAST = auto()
    MIX = auto()
    SHARE = auto()
    BOX_X = auto()
    BOX_Y = auto()


@dataclass(frozen=True, slots=True)
class Mixing:
    """How much of each of B images is its own, and what comes from its partner."""

    blend_B: Floats  # its own share of each pixel
    box_B4: npt.NDArray[np.int64]  # top, bottom, left, right: pixels that are the partner's alone; none where empty
    share_B: Floats  # its own class's share of the target


def moves(spec: Augmentation, numbers_N: Numbers, height: int, width: int) -> Floats | None:
    """For each image the matrix (2, 3) that says where each place of the result, in [-1, 1], is taken from."""
    if spec.rotation_degrees is None and spec.crop is None and spec.shift is None:
        return None

    def draw(salt: Salt, reach: float) -> npt.NDArray[np.float64]:
        return _around_zero(numbers_N, salt) * reach

    angle = draw(Salt.ROTATION, np.deg2rad(spec.rotation_degrees or 0.0))
    kept = 1 - uniform(salted(numbers_N, Salt.CROP)) * (1 - (spec.crop or 1.0))
    x, y = (_around_zero(numbers_N, salt) * (1 - kept) for salt in (Salt.PLACE_X, Salt.PLACE_Y))
    reach = 2 * (spec.shift or 0.0)  # of a side, which is 2 long
    x, y = x + draw(Salt.SHIFT_X, reach), y + draw(Salt.SHIFT_Y, reach)
    cos, sin = kept * np.cos(angle), kept * np.sin(angle)
    # A circle stays one in an image that is no square.
    rows = [[cos, -sin * height / width, x], [sin * width / height, cos, y]]
    return np.array(rows).transpose(2, 0, 1).astype(np.float32)


def lights(spec: Augmentation, numbers_N: Numbers) -> Floats | None:
    """For each image the factors (2,) of its values and of their distance from the mean."""
    if spec.brightness is None and spec.contrast is None:
        return None
    reaches = ((Salt.BRIGHTNESS, spec.brightness), (Salt.CONTRAST, spec.contrast))
    factors = [1 + _around_zero(numbers_N, salt) * (reach or 0.0) for salt, reach in reaches]
    return np.stack(factors, axis=1).astype(np.float32)


def mixing(spec: Augmentation, numbers_B: Numbers, height: int, width: int) -> Mixing | None:
    """By MixUp, by CutMix, or for each image by one of them; None where the job wants neither."""
    if spec.mix_up_alpha is None and spec.cut_mix_alpha is None:
        return None
    cuts_B = uniform(salted(numbers_B, Salt.MIX)) < _share_of_cuts(spec)
    share_B = np.where(cuts_B, _betas(spec.cut_mix_alpha, numbers_B), _betas(spec.mix_up_alpha, numbers_B))
    box_B4 = np.where(cuts_B[:, None], _boxes(share_B, numbers_B, height, width), 0)
    area_B = (box_B4[:, 1] - box_B4[:, 0]) * (box_B4[:, 3] - box_B4[:, 2]) / (height * width)
    return Mixing(
        np.where(cuts_B, 1.0, share_B).astype(np.float32),
        box_B4,
        np.where(cuts_B, 1 - area_B, share_B).astype(np.float32),
    )


def _share_of_cuts(spec: Augmentation) -> float:
    if spec.mix_up_alpha is None:
        return 1.0
    return 0.0 if spec.cut_mix_alpha is None else 0.5


def _betas(alpha: float | None, numbers_B: Numbers) -> npt.NDArray[np.float64]:
    """A draw from Beta(alpha, alpha) for each row; a generator for each, since how often one draws is chance, too."""
    if alpha is None:
        return np.ones(len(numbers_B))
    keys = salted(numbers_B, Salt.SHARE).tolist()
    return np.array([np.random.Generator(np.random.Philox(key=key)).beta(alpha, alpha) for key in keys])


def _boxes(share_B: npt.NDArray[np.float64], numbers_B: Numbers, height: int, width: int) -> npt.NDArray[np.int64]:
    """Of 1 - share of the area, around any place; what lies outside is cut off, as in the paper."""
    side_B = np.sqrt(1 - share_B)

    def span(salt: Salt, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        centre, half = uniform(salted(numbers_B, salt)) * size, side_B * size / 2
        return _clipped(centre - half, size), _clipped(centre + half, size)

    return np.stack([*span(Salt.BOX_Y, height), *span(Salt.BOX_X, width)], axis=1)


def _clipped(edge_B: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.int64]:
    return np.rint(edge_B).clip(0, size).astype(np.int64)


def _around_zero(numbers: Numbers, salt: Salt) -> npt.NDArray[np.float64]:
    """In [-1, 1)."""
    return 2 * uniform(salted(numbers, salt)) - 1
