"""Reads files that are one record each."""

from collections.abc import Iterator
from pathlib import Path

from deepseek_trainer.contract.data import Encoding
from deepseek_trainer.data.formats.bounds import MAX_TEXT, readable, too_long
from deepseek_trainer.data.formats.encodings import as_utf8, decoded
from deepseek_trainer.data.formats.unpacking import unpacked
from deepseek_trainer.data.reading import Columns, Load, Reader, Value


def whole_text(field: str, encoding: Encoding) -> Reader:
    """A reader of files that are one record each, with the whole text in `field`."""

    def text(file: Path, name: str, _: Columns) -> Iterator[tuple[int, Load]]:
        def load() -> Value:
            with readable(name), as_utf8(unpacked(file, name), encoding) as stream:
                content = stream.read(MAX_TEXT + 1)
            if len(content) > MAX_TEXT:
                raise too_long(name, MAX_TEXT)
            return {field: decoded(content, name, encoding)}

        yield 1, load

    return text
