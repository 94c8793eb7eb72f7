"""Refuses files that stand for others: Git LFS pointers, saved web pages, links to nowhere.

A download that went half way leaves them under the names of weights and tokenizers.
"""

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from deepseek_trainer.base_model.guard import place
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_of, named
from deepseek_trainer.storage.opening import opened

_HEAD: Final = 64  # [bytes]
_SHOWN: Final = 5  # names
LFS_POINTER: Final = (
    b"version https://git-lfs",
    b"version https://hawser.github.com/spec/",
)  # Git LFS; its former name
_PAGE: Final = (b"<!doctype html", b"<html")
_REFUSALS: Final = (
    (
        LFS_POINTER,
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` where the model was cloned, or `hf download`, and copy the files again",
    ),
    (
        _PAGE,
        "a web page that was saved under this name",
        "download the file itself, logged in where its publisher asks for that, and copy it again",
    ),
)


def refuse_stand_ins(path: Path, names: Iterable[str], claim: Path) -> None:
    """Raises ConfigError where one of these files of a directory is there in name alone.  Some may be missing."""
    files = [path / name for name in names if (path / name).exists() or (path / name).is_symlink()]
    if lost := [each.name for each in files if each.is_symlink() and not each.exists()]:
        raise ConfigError(
            f"{place(path)}: {first_of(lost, _SHOWN, named)}: a link to a file that is not there",
            hint="copy what the links lead to: `cp -rL`, or the whole cache with its blobs",
        )
    heads = {each.name: _head(each, claim) for each in files if stat.S_ISREG(each.stat().st_mode)}
    for starts, what, hint in _REFUSALS:
        if found := [name for name, head in heads.items() if head.startswith(starts)]:
            raise ConfigError(f"{place(path)}: {first_of(found, _SHOWN, named)}: {what}", hint=hint)


def _head(path: Path, claim: Path) -> bytes:
    with opened(path, below=claim, buffering=0) as file:
        return file.read(_HEAD).lstrip().lower()
