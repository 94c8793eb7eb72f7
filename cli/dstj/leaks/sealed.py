"""Sealed files: how they look from outside, and whether they authenticate where they lie."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.renaming import PARTIAL
from deepseek_trainer.storage.segments import HEADER_BYTES, TAG_BYTES, Layout
from deepseek_trainer.storage.streams import Advance
from deepseek_trainer.storage.vault import SUFFIX, Context, Purpose, Vault

_SEALED: Final = re.compile(rf".*{re.escape(SUFFIX)}({re.escape(PARTIAL)}[^/]*)?", re.DOTALL)
_STEP: Final = re.compile(r"step-([0-9]{8,18})(\..*)?", re.DOTALL)
_RANK: Final = re.compile(r"rank-([0-9]{5,9})\..*", re.DOTALL)
_PURPOSES: Final = {"checkpoints": Purpose.CHECKPOINT, "prepared": Purpose.DATA, "export": Purpose.EXPORT}

Vaults = Mapping[Purpose, Vault]


def claims_to_be_sealed(name: str) -> bool:
    return bool(_SEALED.fullmatch(name))


def is_being_written(name: str) -> bool:
    """Whether a file is, or lies in, what a writer has not finished: a crash may have cut it anywhere."""
    return PARTIAL in name


def misfit(head: bytes, size: int) -> str | None:
    """What is wrong with a whole sealed file of `size` bytes that begins with `head`; None if it may be one."""
    if head[:1] != bytes([HEADER_BYTES]):
        return "a file that was never sealed"
    if size < HEADER_BYTES + TAG_BYTES or not Layout(size).has_whole_tags:
        return "a sealed file that was cut or lengthened"
    return None


def authenticates(vaults: Vaults, volume: Path, name: str, advance: Advance) -> bool:
    """Whether every byte of the sealed file `name` on the work volume is what the job sealed there."""
    plain = PurePosixPath(name.removesuffix(SUFFIX))
    return any(_opens(vaults[purpose], volume / plain, context, advance) for purpose, context in _bound_to(plain))


def _opens(vault: Vault, path: Path, context: Context, advance: Advance) -> bool:
    try:
        vault.verify(path, context, advance=advance)
    except IntegrityError:
        return False
    return True


def _bound_to(plain: PurePosixPath) -> Iterator[tuple[Purpose, Context]]:
    """What a file there may be bound to.  The name of its directory is the vault's business."""
    purpose = _PURPOSES.get(plain.parts[0])
    if purpose is Purpose.CHECKPOINT and (step := _STEP.fullmatch(plain.parent.name)):
        rank = _RANK.fullmatch(plain.name)
        yield purpose, Context(int(step[1]), int(rank[1]) if rank else None)
    else:
        yield from ((each, Context()) for each in ([purpose] if purpose else Purpose))
