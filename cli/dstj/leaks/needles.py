"""Private words in every spelling in which a program would write them, and the search for them in a stream."""

import base64
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.opening import content_of

MAX_WORDS_BYTES: Final = 1 << 20  # of a file of words
MIN_WORD_BYTES: Final = 4
RARE_BYTES: Final = 8  # that many given bytes stand in a terabyte of random ones once in ten million times


@dataclass(frozen=True, slots=True)
class Needle:
    """Bytes that must not be found.  `what` names them without showing them."""

    content: bytes
    what: str

    @property
    def is_rare(self) -> bool:
        """Whether random bytes never hold it by chance."""
        return len(self.content) >= RARE_BYTES


class Search:
    """Finds needles in a stream that comes in pieces, also across their borders.  Each needle is found once."""

    def __init__(self, needles: Iterable[Needle]) -> None:
        self._left = list(needles)
        self._overlap = max((len(needle.content) for needle in self._left), default=1) - 1
        self._tail, self._tail_at = b"", 0

    def feed(self, piece: bytes) -> Iterator[tuple[int, Needle]]:
        """The needles that end in `piece` for the first time, and where they begin in the stream."""
        window = self._tail + piece
        places = [(window.find(needle.content), needle) for needle in self._left]
        self._left = [needle for place, needle in places if place < 0]
        yield from ((self._tail_at + place, needle) for place, needle in places if place >= 0)
        kept = min(self._overlap, len(window))
        self._tail_at += len(window) - kept
        self._tail = window[len(window) - kept :]


def needles_of_words(path: Path) -> list[Needle]:
    """The spellings of the words in a file, one a line.  Raises ConfigError for what cannot be searched for."""
    try:
        lines = content_of(path, max_bytes=MAX_WORDS_BYTES).decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the words are not UTF-8", hint="one word a line, in UTF-8") from None
    words = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    for number, word in words.items():
        if len(word.encode()) < MIN_WORD_BYTES:
            raise ConfigError(
                f"{path}:{number}: a word of fewer than {MIN_WORD_BYTES} bytes is everywhere by chance",
                hint="give more of what stands around it",
            )
    return _once(needle for number, word in words.items() for needle in _spelled(word, f"word {number}"))


def needles_of_keys(keys: Iterable[Key], what: str) -> list[Needle]:
    """Keys as they are, in hex and in base64."""
    return _once(
        Needle(content, f"{what} {key.id}{how}") for key in keys for content, how in _spelled_bytes(key.material)
    )


def needles_of_token(path: Path) -> list[Needle]:
    """The token that a key server takes, as it is, in hex and in base64."""
    token = content_of(path, max_bytes=MAX_WORDS_BYTES).strip()
    found = _once(Needle(content, f"the key server's token{how}") for content, how in _spelled_bytes(token))
    return [needle for needle in found if needle.is_rare]


def _spelled(word: str, what: str) -> Iterator[Needle]:
    """The word itself, whatever its length, and those of its other spellings that are rare."""
    yield Needle(word.encode(), what)
    others = (Needle(content, f"{what}{how}") for content, how in _spellings(word))
    yield from (needle for needle in others if needle.is_rare)


def _spellings(word: str) -> Iterator[tuple[bytes, str]]:
    for form in ("NFC", "NFD"):  # a file system may compose letters or take them apart
        text = unicodedata.normalize(form, word)
        for encoding, name in (("utf-8", ""), ("utf-16-le", " in UTF-16"), ("utf-16-be", " in UTF-16")):
            yield from ((content, f"{name}{how}") for content, how in _spelled_bytes(text.encode(encoding)))
    yield json_text(word)[1:-1].encode(), " as JSON escapes it"
    yield word.encode("unicode_escape"), " as Python escapes it"
    yield quote(word, safe="").encode(), " as URLs escape it"


def _spelled_bytes(content: bytes) -> Iterator[tuple[bytes, str]]:
    yield content, ""
    yield content.hex().encode(), " in hex"
    yield content.hex().upper().encode(), " in hex"
    for shift in range(3):  # base64 takes three bytes at a time, and the word may begin at each of them
        encoded = base64.b64encode(bytes(shift) + content)
        whole = encoded[(0, 2, 3)[shift] : (shift + len(content)) * 4 // 3]  # letters that follow from it alone
        yield whole, " in base64"
        yield whole.translate(bytes.maketrans(b"+/", b"-_")), " in base64"


def _once(needles: Iterable[Needle]) -> list[Needle]:
    """Without those that another one finds as well."""
    return list({needle.content: needle for needle in reversed(list(needles))}.values())[::-1]
