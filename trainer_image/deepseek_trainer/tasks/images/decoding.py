"""From the bytes of a picture to pixels of the size that the job asks for."""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import MAX_SHOWN, one_line
from deepseek_trainer.contract.images import ImagesSpec

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS: Final = 64_000_000  # of a picture before it is resized: 200 MB of memory; a small file may claim any number
_OF_8_BITS: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_WAY_OUT: Final = "take it away or write it again, or set data.onBadRecord: Skip"


def decoded(encoded: bytes, place: str, images: ImagesSpec) -> Pixels:
    """uint8 of shape (height, width, channels).

    Turned as its camera says, and resized by Pillow's bilinear filter: what transformers' ViTImageProcessor does to it.
    Raises DataError for what is no PNG or JPEG, is cut off, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            _refuse(image, place)
            upright = ImageOps.exif_transpose(image)
            plain = upright.convert("L" if images.channels == 1 else "RGB")
            resized = plain.resize((images.width, images.height), Image.Resampling.BILINEAR)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{place} has more than {MAX_PIXELS:,} pixels", hint=_WAY_OUT) from None
    except UnidentifiedImageError:
        raise DataError(f"{place} is no PNG or JPEG", hint=_WAY_OUT) from None
    except Exception as error:  # decoders raise whatever a broken file leads them to
        what = one_line(str(error), 2 * MAX_SHOWN) or type(error).__name__
        raise DataError(f"{place} is damaged", hint=_WAY_OUT, full=f"{place} is damaged: {what}") from None
    return np.asarray(resized, np.uint8).reshape(images.height, images.width, images.channels)


def _refuse(image: Image.Image, place: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{place} has {width} x {height} pixels: at most {MAX_PIXELS:,} are read", hint=_WAY_OUT)
    if image.mode not in _OF_8_BITS:
        raise DataError(
            f"{place} has pixels of kind {image.mode}: 8 bits for each channel are read",
            hint="write it again with 8 bits for each channel, or set data.onBadRecord: Skip",
        )
