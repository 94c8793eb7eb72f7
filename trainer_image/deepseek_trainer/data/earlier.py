"""Prepared directories of earlier versions whose names are plain digests.

Beside sealed data such a name tells the data to whoever guesses right.  Their files are bound to the name of their
directory, so it cannot be changed: they are removed, and prepared anew.
"""

import logging
import re
from pathlib import Path
from typing import Final

from deepseek_trainer.storage.durable import remove
from deepseek_trainer.storage.vault import SUFFIX, Vault

log = logging.getLogger(__name__)

_DIGEST: Final = re.compile(r"([0-9a-f]{64}|model-[0-9a-f]{32})(\.partial-.*)?")


def remove_telling(prepared: Path, vault: Vault) -> None:
    """Remove the sealed directories in `prepared` that a digest names.  What lies in the clear hides nothing: it stays.

    No run of this version has any.  One of an earlier version that is still alive has read them into memory.
    """
    telling = [path for path in prepared.iterdir() if _DIGEST.fullmatch(path.name) and _is_sealed(path)]
    if not (vault.sealed and telling):
        return
    for path in telling:
        remove(path)
    log.info("removed %d directories of an earlier version, whose names told their content: made anew", len(telling))


def _is_sealed(directory: Path) -> bool:
    return not directory.is_symlink() and any(directory.glob(f"*{SUFFIX}"))
