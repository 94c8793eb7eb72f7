"""Files of weights of a base model, copied as they are or with an adapter added to some of the weights.

Without torch.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from deepseek_trainer.base_model.guard import place
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.base_model.updates import STORED, Update, updated
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.storage.opening import opened
from deepseek_trainer.storage.tensorfile import Extent, View, extents

_CHUNK: Final = 16 << 20  # [bytes]


def bytes_of(source: Place, name: str, digest: str, updates: Mapping[str, Update]) -> Iterator[bytes]:
    """The file in pieces, with `updates` added to the weights of these names.

    Raises IntegrityError at the end if the file is not what was verified a moment ago.
    """
    seen = hashlib.sha256()
    path = source.path / name
    with opened(path, below=source.claim) as file:

        def pieces(end: int | None) -> Iterator[bytes]:
            while end is None or file.tell() < end:
                if not (chunk := file.read(_CHUNK if end is None else min(_CHUNK, end - file.tell()))):
                    return
                seen.update(chunk)
                yield chunk

        for key, at in _changed(path, file, updates):
            yield from pieces(at.start)
            whole = memoryview(b"".join(pieces(at.end)))
            yield updated(key, View(at.dtype, at.shape, whole), updates[key])
        yield from pieces(None)
    if seen.hexdigest() != digest:
        raise IntegrityError(
            f"{place(path)} was changed while it was read", hint="nobody may write to the claim during a run"
        )


def _changed(path: Path, file: BinaryIO, updates: Mapping[str, Update]) -> list[tuple[str, Extent]]:
    """Where in a file of weights those with an update lie, in order."""
    if not updates:
        return []
    size = os.fstat(file.fileno()).st_size

    def read_at(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(min(length, size))

    found = {key: at for key, at in extents(read_at, size, path.name).items() if key in updates}
    file.seek(0)
    for key, at in found.items():
        if at.dtype not in STORED:
            raise ConfigError(
                f"model.adapter: {key} of model.base is of type {at.dtype}: adapters are added to {', '.join(STORED)}",
                hint="store the base in one of these",
            )
    return sorted(found.items(), key=lambda entry: entry[1].start)
