"""Looks whether a head that is tied to the embedding is the embedding, where the files of a model hold both."""

import os
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Final

from deepseek_trainer.base_model.decoder import Settings, Shape, is_tied
from deepseek_trainer.base_model.families import family_of
from deepseek_trainer.base_model.guard import place
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.opening import opened
from deepseek_trainer.storage.tensorfile import extents

_PIECE: Final = 16 << 20  # [bytes] read at once


def refuse_other_head(source: Place, found: Mapping[str, tuple[str, Shape]], settings: Settings) -> None:
    """Raises ConfigError where config.json ties head and embedding, and the files hold two that differ.

    Programs disagree on such a model: some take the one for both, others each for itself.
    """
    family = family_of(settings.get("model_type"))
    head, embedding = f"{family.head}.weight", f"{family.embedding}.weight"
    if not is_tied(settings, by_default=family.tied) or not {head, embedding} <= found.keys():
        return
    pieces = (_pieces(source, found[key][0], key) for key in (head, embedding))
    if any(one != other for one, other in zip_longest(*pieces)):
        raise ConfigError(
            f"{place(source.path)}: config.json ties the head to the embedding (tie_word_embeddings), and {head} is "
            f"another than {embedding}",
            hint="set tie_word_embeddings: false in config.json if the head was trained, as after a merge of adapters; "
            f"else save the model without {head}",
        )


def _pieces(source: Place, file: str, key: str) -> Iterator[bytes]:
    with opened(source.path / file, below=source.claim) as stream:

        def read_at(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return stream.read(length)

        extent = extents(read_at, os.fstat(stream.fileno()).st_size, file)[key]
        for start in range(extent.start, extent.end, _PIECE):
            yield read_at(start, min(_PIECE, extent.end - start))
