"""Opens a file of records, packed or not, as the stream of bytes that it is unpacked."""

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import BinaryIO, Final

from deepseek_trainer.base_model.stand_ins import LFS_POINTER
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.storage.opening import opened

GZIP: Final = ".gz"
ZSTD: Final = ".zst"
PACKED: Final = (GZIP, ZSTD)


def suffix_of(file: PurePath) -> str:
    """The suffix that tells the format, in small letters: `.jsonl`, or `.jsonl.gz` where it is packed."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    last = suffixes[-1:]
    return "".join(suffixes[-2:] if last and last[0] in PACKED else last)


def unpacked(file: Path, name: str) -> BinaryIO:
    """The content of a regular file.  Reading raises DataError where a packed one is damaged or cut short."""
    stream = opened(file, refusal=DataError)
    try:
        _refuse_pointer(stream, name)
        suffix = file.suffix.lower()
        if suffix not in PACKED:
            return stream
        unpack = _gzip if suffix == GZIP else _zstd
        return io.BufferedReader(_Unpacking(stream, unpack, name), 1 << 20)
    except BaseException:
        stream.close()
        raise


def _refuse_pointer(stream: BinaryIO, name: str) -> None:
    if stream.peek(max(map(len, LFS_POINTER))).startswith(LFS_POINTER):  # type: ignore[attr-defined]  # of BufferedReader
        raise DataError(
            f"{shown(name)} is a Git LFS pointer, not the file itself", hint="run `git lfs pull` where it was cloned"
        )


def _gzip(stream: BinaryIO) -> BinaryIO:
    return gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[return-value]  # it reads


def _zstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow as pa  # noqa: PLC0415 memory that only some files need

    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")  # type: ignore[no-any-return]


class _Unpacking(io.RawIOBase):
    def __init__(self, stream: BinaryIO, unpack: Callable[[BinaryIO], BinaryIO], name: str) -> None:
        self._stream, self._name = stream, name
        self._unpacked = unpack(stream)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]  # of any buffer
        try:
            piece = self._unpacked.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
            raise self._damaged() from error
        except OSError as error:
            if error.errno is not None:
                raise  # the volume's fault, not the file's
            raise self._damaged() from error
        buffer[: len(piece)] = piece
        return len(piece)

    def _damaged(self) -> DataError:
        kind = "gzip" if Path(self._name).suffix.lower() == GZIP else "zstd"
        return DataError(f"{self._name}: damaged, cut short, or not a {kind} file", hint="copy or pack the file again")

    def close(self) -> None:
        self._stream.close()
        super().close()
