"""Rows of pixels as tensors, with all that chance does to them.

Shapes: B rows in a micro-batch; N images, which are B, or 2 B where each is mixed with a partner.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from deepseek_trainer.contract.images import Augmentation
from deepseek_trainer.data.batch import Tensors
from deepseek_trainer.data.draws import Draws, Numbers, RowArray
from deepseek_trainer.tasks.images.chance import Floats, lights, mixing, moves


@dataclass(frozen=True, slots=True)
class ImageBatch(Tensors):
    """Images as they were prepared; `augment.augmented` changes them where the model computes.

    Partners come after the rows, in the same order.
    """

    size: int  # rows, B
    pixels_NHWC: Tensor  # uint8
    labels_N: Tensor  # int64
    moves_N23: Tensor | None = None  # float32, as `chance.moves`
    lights_N2: Tensor | None = None  # float32, as `chance.lights`
    blend_B: Tensor | None = None  # these three as `chance.Mixing`
    box_B4: Tensor | None = None
    share_B: Tensor | None = None
    numbers: Numbers | None = None  # a model of images drops nothing out


def collate(rows: RowArray, draws: Draws | None, spec: Augmentation | None) -> ImageBatch:
    """The batch of `rows`; as they are where nothing is drawn."""
    if draws is None or spec is None:
        return ImageBatch(len(rows), *_tensors(rows))
    _, height, width, _ = rows["pixels"].shape
    mixed, images, numbers = mixing(spec, draws.numbers, height, width), rows, draws.numbers
    if mixed is not None:
        partners, their_numbers = draws.partners()
        images, numbers = np.concatenate([rows, partners]), np.concatenate([numbers, their_numbers])
    batch = ImageBatch(
        len(rows),
        *_tensors(images),
        moves_N23=_tensor(moves(spec, numbers, height, width)),
        lights_N2=_tensor(lights(spec, numbers)),
    )
    if mixed is None:
        return batch
    blend_B, box_B4, share_B = (torch.from_numpy(each) for each in (mixed.blend_B, mixed.box_B4, mixed.share_B))
    return replace(batch, blend_B=blend_B, box_B4=box_B4, share_B=share_B)


def _tensors(rows: RowArray) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.ascontiguousarray(rows["pixels"]))
    return pixels, torch.from_numpy(rows["label"].astype(np.int64))


def _tensor(values: Floats | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(np.ascontiguousarray(values))
