"""Finds a model in a cache of the Hugging Face hub: `models--org--name/snapshots/COMMIT`, with links to `blobs`."""

from pathlib import Path
from typing import Final

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_of, named
from deepseek_trainer.storage.opening import content_of

SNAPSHOTS: Final = "snapshots"
_MAIN: Final = "refs/main"  # the commit that the branch main was at
_MAX_COMMIT: Final = 4096  # [bytes]
_SHOWN: Final = 5  # names


def is_cache(path: Path) -> bool:
    """Whether `path` is the cache of one model, or the directory of its snapshots."""
    return _snapshots(path).is_dir() and not (path / "config.json").exists()


def snapshot_of(path: Path, claim: Path | None) -> Path:
    """The directory of the model's files where `path` is such a cache, else `path`.

    Of several snapshots it is the one that `refs/main` names.  Raises ConfigError where that says nothing, or where
    there is none.
    """
    if not is_cache(path):
        return path
    held = {each.name: each for each in sorted(_snapshots(path).iterdir()) if each.is_dir()}
    wanted = _main(_snapshots(path).parent / _MAIN, claim)
    if wanted in held:
        return held[wanted]
    if len(held) == 1:
        return next(iter(held.values()))
    raise ConfigError(
        f"{path} is a cache of the Hugging Face hub with {len(held)} snapshots, and its {_MAIN} names none of them",
        hint=f"set model.base.path to one of them: {_snapshots(path).name}/{first_of([*held], _SHOWN, named)}"
        if held
        else "download the model again, or copy the whole directory",
    )


def _snapshots(path: Path) -> Path:
    return path if path.name == SNAPSHOTS else path / SNAPSHOTS


def _main(ref: Path, claim: Path | None) -> str | None:
    if not ref.is_file():
        return None
    return content_of(ref, max_bytes=_MAX_COMMIT, below=claim).decode(errors="replace").strip()
