"""From the encoding of a file to UTF-8, and what bytes look like that are in another encoding than the job says."""

import codecs
import io
import re
from typing import BinaryIO, Final

from deepseek_trainer.contract.data import Encoding
from deepseek_trainer.contract.errors import DataError

_PIECE: Final = 1 << 20  # [bytes] decoded at once
_LOOK: Final = 1 << 16  # [bytes] of a text that are looked at
_MAGIC: Final = {
    b"\x1f\x8b": ("a gzip file", "name it so, for example a.jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", "name it so, for example a.jsonl.zst"),
    b"PK\x03\x04": ("a ZIP archive, as .xlsx and .docx are", "unpack it, or export it as CSV or JSON Lines"),
    b"PAR1": ("a Parquet file", "name it so, for example a.parquet"),
    b"ARROW1": ("an Arrow file", "write it as Parquet or JSON Lines"),
    b"%PDF": ("a PDF file", "extract its text first"),
    b"BZh": ("a bzip2 file", "unpack it, or pack it with gzip or zstd"),
    b"\xfd7zXZ": ("an xz file", "unpack it, or pack it with gzip or zstd"),
}
_HIGH: Final = re.compile(rb"[\x80-\xff]+")
_KANA: Final = re.compile(r"[\u3041-\u30ff]")
_HANGUL: Final = re.compile(r"[\uac00-\ud7a3]")
_CJK: Final = re.compile(r"[\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]")
_CYRILLIC: Final = re.compile(r"[\u0400-\u04ff]")
_BAD: Final = "dstj-bad-byte"
codecs.register_error(_BAD, lambda error: ("\udc80", error.end))  # type: ignore[attr-defined]  # of UnicodeDecodeError


def as_utf8(stream: BinaryIO, encoding: Encoding) -> BinaryIO:
    """`stream` in UTF-8.  Where it is not what `encoding` says, there stands a byte that no UTF-8 has."""
    if encoding is Encoding.UTF_8:
        return stream
    return io.BufferedReader(_Transcoded(stream, encoding), _PIECE)


class _Transcoded(io.RawIOBase):
    def __init__(self, stream: BinaryIO, encoding: Encoding) -> None:
        self._stream, self._waiting = stream, memoryview(b"")
        head = stream.peek(_LOOK)[:_LOOK]  # type: ignore[attr-defined]  # of BufferedReader
        self._decoder = codecs.getincrementaldecoder(_codec(encoding, head))(_BAD)
        self._is_over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]  # of any buffer
        while not self._waiting and not self._is_over:
            raw = self._stream.read(_PIECE)
            self._is_over = not raw
            text = self._decoder.decode(raw, final=self._is_over)
            self._waiting = memoryview(text.encode("utf-8", "surrogateescape"))
        size = min(len(buffer), len(self._waiting))
        buffer[:size] = self._waiting[:size]
        self._waiting = self._waiting[size:]
        return size

    def close(self) -> None:
        self._stream.close()
        super().close()


def _codec(encoding: Encoding, head: bytes) -> str:
    """UTF-16 without a mark is in the order in which more of the zeros that letters have come out."""
    if encoding is not Encoding.UTF_16 or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return encoding.value
    return "utf-16-be" if head[::2].count(0) > head[1::2].count(0) else "utf-16-le"


def decoded(raw: bytes, place: str, encoding: Encoding = Encoding.UTF_8) -> str:
    """The text of bytes that `as_utf8` gave.  Raises DataError that says what they look like."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise undecodable(raw, place, encoding, error.start) from None
    if is_utf16(raw):
        raise undecodable(raw, place, encoding, raw.index(0))
    return text


def undecodable(raw: bytes, place: str, encoding: Encoding, at: int | None = None) -> DataError:
    """The error for bytes of which the one at `at` does not belong to `encoding`."""
    if encoding is not Encoding.UTF_8:
        return DataError(
            f"{place}: not {encoding.value}, which data.encoding says", hint="set data.encoding to the file's encoding"
        )
    what = "not UTF-8" if at is None else f"byte {at + 1} is not UTF-8"
    kind, hint = look(raw)
    return DataError(f"{place}: {what}{kind and f'; it looks like {kind}'}", hint=hint)


def look(raw: bytes) -> tuple[str, str]:
    """What bytes that are not UTF-8 look like, and the way out.  An empty name where nothing is likely."""
    for magic, found in _MAGIC.items():
        if raw.startswith(magic):
            return found
    encoding = _likely(raw[:_LOOK])
    if encoding is None:
        return "", "convert the file to UTF-8, or set data.encoding"
    return encoding.value, f"set data.encoding: {encoding.value}, or convert the file to UTF-8"


def is_utf16(raw: bytes) -> bool:
    """Whether they begin as UTF-16 does, or are letters with a zero byte each."""
    head = raw[:_LOOK]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    half = max(1, len(head) // 2)
    return len(head) >= 16 and max(head[::2].count(0), head[1::2].count(0)) > 0.4 * half


def _likely(raw: bytes) -> Encoding | None:
    if is_utf16(raw):
        return Encoding.UTF_16
    runs = [len(run) for run in _HIGH.findall(raw)]
    if sum(size for size in runs if size > 1) < 0.6 * sum(runs):
        return _asian(raw, (Encoding.SHIFT_JIS,)) or Encoding.WINDOWS_1252
    return _asian(
        raw, (Encoding.SHIFT_JIS, Encoding.EUC_JP, Encoding.EUC_KR, Encoding.GB18030, Encoding.BIG5)
    ) or _cyrillic(raw)


def _asian(raw: bytes, candidates: tuple[Encoding, ...]) -> Encoding | None:
    marks = {Encoding.SHIFT_JIS: _KANA, Encoding.EUC_JP: _KANA, Encoding.EUC_KR: _HANGUL}
    for encoding in candidates:
        text = _trial(raw, encoding)
        letters = [letter for letter in text if ord(letter) > 0x7F]
        usual = len(_CJK.findall(text))
        marked = len(marks[encoding].findall(text)) if encoding in marks else usual
        # Hanzi read as EUC-KR become hangul, too: spaces between words tell Korean.
        is_spaced = encoding is not Encoding.EUC_KR or text.count(" ") * 12 > len(letters)
        if letters and usual > 0.8 * len(letters) and marked > 0.2 * len(letters) and is_spaced:
            return encoding
    return None


def _cyrillic(raw: bytes) -> Encoding | None:
    text = _trial(raw, Encoding.WINDOWS_1251)
    letters = [letter for letter in text if ord(letter) > 0x7F]
    return Encoding.WINDOWS_1251 if len(_CYRILLIC.findall(text)) > 0.8 * len(letters) else None


def _trial(raw: bytes, encoding: Encoding) -> str:
    """The text, without a letter that was cut at the end; empty if it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding.value)().decode(raw, final=False)
    except UnicodeDecodeError:
        return ""
