"""What everybody can read of a job's volumes, and what it gives away."""

import base64
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from socket import gethostname

from deepseek_trainer.storage.vault import SUFFIX

_NUMBER = re.compile(r"(?<![0-9A-Za-z])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![0-9A-Za-z])")  # measures, times and counts
_STEP = re.compile(r"step-\d{8}")
_DIGEST = re.compile(r"[0-9a-fA-F]{8,}")
PREFIX = 8  # digits of a digest that are enough to test a guess


def names_and_clear_texts(root: Path, *outputs: str) -> Iterator[str]:
    """Every name below `root`, the content of every file that is not sealed, and what was printed."""
    for path in root.rglob("*"):
        yield str(path.relative_to(root))
        if path.is_file() and path.suffix != SUFFIX:
            yield path.read_bytes().decode("latin-1")
    yield from outputs


def digests_in(texts: Iterable[str]) -> set[str]:
    """Whatever may be a digest or a part of one: eight hex digits or more, and no number that stands alone."""
    here = gethostname()  # a container's looks like a digest, and TensorBoard's files have it
    plain = (_NUMBER.sub(" ", _STEP.sub(" ", text.replace(here, " "))) for text in texts)
    return {found for text in plain for found in _DIGEST.findall(text)}


def guesses_confirmed(texts: Iterable[str], digests: Iterable[str]) -> list[str]:
    """Which of `digests` (hex) somebody recognises in what everybody can read, in any spelling, by their beginning."""
    everything = "\n".join(texts)
    return [digest for digest in digests if any(each in everything for each in _spellings(digest))]


def _spellings(digest: str) -> Iterator[str]:
    raw = bytes.fromhex(digest)
    yield from (digest[:PREFIX], digest[:PREFIX].upper(), raw[:PREFIX].decode("latin-1"))
    yield from (encode(raw).decode()[:PREFIX] for encode in (base64.b64encode, base64.urlsafe_b64encode))
