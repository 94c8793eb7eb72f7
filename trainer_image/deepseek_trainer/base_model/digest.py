"""SHA-256 of a model's files, as `model.base.sha256` states it."""

import hashlib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import cast

from deepseek_trainer.base_model.hub_cache import snapshot_of
from deepseek_trainer.storage.opening import opened


def file_digest(path: Path, claim: Path | None = None) -> str:
    """Raises ConfigError where links lead out of the `claim`."""
    with opened(path, below=claim) as file:
        return hashlib.file_digest(cast("BufferedReader", file), "sha256").hexdigest()


def digest_of(path: Path, claim: Path | None = None) -> str:
    """Digest of a file, or of a directory's listing, in hex.

    For a directory the same as `sha256sum * | LC_ALL=C sort | sha256sum` in it: hidden files and
    subdirectories do not count.  For a cache of the Hugging Face hub it is that of the snapshot.
    """
    path = snapshot_of(path, claim)
    return file_digest(path, claim) if path.is_file() else listing_digest(file_digests(path, claim))


def file_digests(directory: Path, claim: Path | None = None) -> dict[str, str]:
    """{name: digest} of a directory's files."""
    files = (path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: file_digest(path, claim) for path in files}


def listing_digest(digests: Mapping[str, str]) -> str:
    lines = sorted(f"{digest}  {name}\n".encode() for name, digest in digests.items())
    return hashlib.sha256(b"".join(lines)).hexdigest()
