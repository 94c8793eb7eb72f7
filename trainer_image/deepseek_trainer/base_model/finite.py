"""Looks for NaN and infinity in safetensors files: without torch, and with no more than a piece of one in memory."""

import os
from collections.abc import Iterable
from typing import BinaryIO, Final

import numpy as np

from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.base_model.families import family_of
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import named
from deepseek_trainer.storage.opening import opened
from deepseek_trainer.storage.tensorfile import Extent, extents

_PIECE: Final = 1 << 24  # [bytes] read at once, a multiple of every number's size
# The bits of the exponent, all of which are set in NaN and infinity alone.
_EXPONENT: Final = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "BF16": ("<u2", 0xFF << 7),
    "F16": ("<u2", 0x1F << 10),
}


def refuse_non_finite_files(source: Place, names: Iterable[str], settings: Settings) -> None:
    """Raise ConfigError for the first weight of these files that is no number, as a run does for a loaded model."""
    family = family_of(settings.get("model_type"))
    passed_over = family.passed_over(settings)
    for file in names:
        with opened(source.path / file, below=source.claim) as stream:
            for name, extent in _extents(stream, file).items():
                is_used = not name.startswith(passed_over) and not name.endswith(family.old_buffers)
                if is_used and not _is_finite(stream, extent):
                    raise ConfigError(
                        f"{source.path / file}: the weight {named(name)} is not finite: it holds NaN or infinity",
                        hint="training cannot mend it: take another copy or another release of the model",
                    )


def _extents(stream: BinaryIO, file: str) -> dict[str, Extent]:
    def read_at(offset: int, length: int) -> bytes:
        stream.seek(offset)
        return stream.read(length)

    return extents(read_at, os.fstat(stream.fileno()).st_size, file)


def _is_finite(stream: BinaryIO, extent: Extent) -> bool:
    if extent.dtype not in _EXPONENT:
        return True
    kind, exponent = _EXPONENT[extent.dtype]
    stream.seek(extent.start)
    left = extent.end - extent.start
    while left and (piece := stream.read(min(_PIECE, left))):
        bits = np.frombuffer(piece, kind) & np.array(exponent, kind)
        if (bits == exponent).any():
            return False
        left -= len(piece)
    return True
