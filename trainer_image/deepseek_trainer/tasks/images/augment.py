"""Augmentation, on the device where the model computes; what it does to an image depends on no other row.

Shapes: B rows, N images (the rows, then their partners), C channels, H rows and W columns of pixels.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from deepseek_trainer.tasks.images.batch import ImageBatch
from deepseek_trainer.tasks.images.normalisation import Normalisation


def augmented(batch: ImageBatch) -> Tensor:
    """float32 in [0, 1] of shape BCHW."""
    images_NCHW = batch.pixels_NHWC.permute(0, 3, 1, 2).float().contiguous() / 255
    if batch.moves_N23 is not None:
        images_NCHW = _moved(images_NCHW, batch.moves_N23)
    if batch.lights_N2 is not None:
        images_NCHW = _lit(images_NCHW, batch.lights_N2)
    return images_NCHW if batch.blend_B is None else _mixed(images_NCHW, batch)


def normalised(images_BCHW: Tensor, normalisation: Normalisation) -> Tensor:
    """What a model takes.  Of numbers that the host knows: no device waits for them."""
    channels = zip(images_BCHW.unbind(1), normalisation.mean, normalisation.std, strict=True)
    return torch.stack([(values - mean) / std for values, mean, std in channels], dim=1)


def _moved(images_NCHW: Tensor, moves_N23: Tensor) -> Tensor:
    """By bilinear sampling; beyond an edge its pixels are repeated."""
    height, width = images_NCHW.shape[2:]
    x_W, y_H = _centres(width, moves_N23), _centres(height, moves_N23)
    # Not torch's affine_grid, whose matrix product may round otherwise in a batch of another size.
    to_x, to_y, by_N21 = moves_N23[:, :, 0, None, None], moves_N23[:, :, 1, None, None], moves_N23[:, :, 2, None, None]
    grid_N2HW = to_x * x_W + to_y * y_H[:, None] + by_N21
    return grid_sample(images_NCHW, grid_N2HW.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def _centres(size: int, like: Tensor) -> Tensor:
    """Of `size` pixels that fill [-1, 1]."""
    return (torch.arange(size, dtype=like.dtype, device=like.device) * 2 + 1) / size - 1


def _lit(images_NCHW: Tensor, lights_N2: Tensor) -> Tensor:
    brightness, contrast = lights_N2[:, 0, None, None, None], lights_N2[:, 1, None, None, None]
    lit_NCHW = images_NCHW * brightness
    mean = lit_NCHW.mean((1, 2, 3), keepdim=True)
    return (mean + (lit_NCHW - mean) * contrast).clamp(0, 1)


def _mixed(images_NCHW: Tensor, batch: ImageBatch) -> Tensor:
    assert batch.blend_B is not None
    assert batch.box_B4 is not None
    own, partner = images_NCHW[: batch.size], images_NCHW[batch.size :]
    keeps = torch.where(_inside(batch.box_B4, *own.shape[2:])[:, None], 0.0, batch.blend_B[:, None, None, None])
    return own * keeps + partner * (1 - keeps)


def _inside(box_B4: Tensor, height: int, width: int) -> Tensor:
    """bool of shape BHW: which pixels lie in the boxes."""
    top, bottom, left, right = (box_B4[:, i, None] for i in range(4))
    y_H, x_W = torch.arange(height, device=box_B4.device), torch.arange(width, device=box_B4.device)
    in_rows_BH, in_columns_BW = (y_H >= top) & (y_H < bottom), (x_W >= left) & (x_W < right)
    return in_rows_BH[:, :, None] & in_columns_BW[:, None, :]
