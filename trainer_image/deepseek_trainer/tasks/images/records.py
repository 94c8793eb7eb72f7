"""From files to pictures with their classes: a folder for each class, or tables with the bytes of the files."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn, Self

from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.images import ImagesSpec
from deepseek_trainer.data.fields import kind, label_of, refuse_missing, refuse_twice
from deepseek_trainer.data.formats.bounds import readable
from deepseek_trainer.data.formats.parquet import parquet_table
from deepseek_trainer.data.reading import Columns, Load, Reader, Reading, Value
from deepseek_trainer.storage.opening import opened
from deepseek_trainer.tasks.images.decoding import Pixels, decoded

MAX_BYTES: Final = 256 << 20  # of a file: whatever a camera writes is far smaller
PICTURES: Final = (".png", ".jpg", ".jpeg")
OTHER_PICTURES: Final = (".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".jp2")
TABLE: Final = ".parquet"

PassedOver = dict[str, tuple[str, ...]]  # columns that are not read, by the place of their table


@dataclass(frozen=True, slots=True)
class Picture:
    """The bytes of an image file, and its class."""

    encoded: bytes
    label: str
    source: str
    line: int  # of a table the row
    pixels: Pixels | None = None
    unused: tuple[str, ...] = field(default=(), compare=False)  # other columns of its table

    def decoded(self, images: ImagesSpec) -> Self:
        """With its pixels, as the job wants them.  Raises DataError for a picture that cannot be decoded."""
        return replace(self, pixels=decoded(self.encoded, self.place, images))

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}" if self.source.lower().endswith(TABLE) else self.source

    def key(self) -> int:
        """Of the bytes alone: a picture that is filed under two classes is held out with both, or with none."""
        return int.from_bytes(hashlib.blake2b(self.encoded, digest_size=8, person=b"dstj record").digest(), "big")

    def size_bytes(self) -> int:
        return len(self.encoded)


def reading(spec: DataSpec) -> Reading[Picture]:
    """By the fields that the job names."""
    assert spec.images is not None, "the spec asks for images with format Images"
    images, passed_over = spec.images, PassedOver()
    return Reading(
        readers=_readers(images),
        columns=partial(_columns, images, passed_over),
        record=partial(_picture, images, passed_over),
        way_out=_way_out,
        advertised=(*PICTURES, TABLE),
    )


def _readers(images: ImagesSpec) -> dict[str, Reader]:
    """Files of other formats are bad records, and not passed over."""
    pictures = {suffix: _picture_file(images) for suffix in PICTURES}
    return {TABLE: parquet_table} | pictures | dict.fromkeys(OTHER_PICTURES, _other)


def _picture_file(images: ImagesSpec) -> Reader:
    def one(file: Path, name: str, _: Columns) -> Iterator[tuple[int, Load]]:
        def load() -> Value:
            label = _folder(name)
            with readable(name), opened(file, refusal=DataError) as stream:
                encoded = stream.read(MAX_BYTES + 1)
            return {images.image_field: encoded, images.label_field: label}

        yield 1, load

    return one


def _other(_: Path, name: str, __: Columns) -> Iterator[tuple[int, Load]]:
    def load() -> NoReturn:
        raise DataError(
            f"{name} is a {PurePosixPath(name).suffix.lower()} file: PNG and JPEG are read",
            hint="convert it, take it away, or set data.onBadRecord: Skip",
        )

    yield 1, load


def _folder(name: str) -> str:
    folders = PurePosixPath(name).parts[:-1]
    if not folders:
        raise DataError(
            f"{name} lies in no folder: its class is the first folder below the place that the job names",
            hint="move it into a folder of its class, for example train/cat/x.png with data.train.path: train",
        )
    return folders[0]


def _columns(images: ImagesSpec, passed_over: PassedOver, names: list[str], place: str) -> list[str]:
    wanted = {"images.imageField": images.image_field, "images.labelField": images.label_field}
    for setting, name in wanted.items():
        if name not in names:
            refuse_missing(name, names, place, setting)
    refuse_twice([*wanted.values()], names, place)
    passed_over[place] = tuple(name for name in names if name not in wanted.values())
    return [*wanted.values()]


def _picture(images: ImagesSpec, passed_over: PassedOver, value: Value, name: str, line: int) -> Picture:
    picture = Picture(b"", "", name, line)
    label = label_of(value, images.label_field, picture.place, "images.labelField")
    encoded = _encoded(value, images.image_field, picture.place)
    return Picture(encoded, label, name, line, unused=passed_over.get(name, ()))


def _encoded(value: Value, field: str, place: str) -> bytes:
    """The bytes of a file; the layout of Hugging Face's tables, a struct with `bytes`, is understood as well."""
    found: Any = value[field]
    if isinstance(found, dict):
        found = found.get("bytes")
    if not isinstance(found, bytes):
        raise DataError(
            f"{place}: field {shown(field)} must have the bytes of a PNG or JPEG file, this is {kind(found)}",
            hint="set data.images.imageField to the column with the files' bytes",
        )
    if not 0 < len(found) <= MAX_BYTES:
        what = "is empty" if not found else f"has more than {MAX_BYTES >> 20} MiB"
        raise DataError(f"{place}: the picture {what}", hint="take it away, or set data.onBadRecord: Skip")
    return found


def _way_out(_: Sequence[Path]) -> str:
    return "give PNG or JPEG files in a folder for each class, or Parquet tables with their bytes; see docs/images.md"
