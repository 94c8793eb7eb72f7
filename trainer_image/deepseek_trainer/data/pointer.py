"""Which prepared data the nodes of one attempt use.

Node 0 prepares, then leaves a pointer at a path that holds the run id.  So no node can follow an earlier attempt's
pointer, and a node 0 that has outlived its attempt cannot mislead a later one.
"""

import logging
import time
from pathlib import Path
from typing import Final

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import IntegrityError, TryAgainError
from deepseek_trainer.contract.foreign import file_name, shown
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.storage.commit import committed
from deepseek_trainer.storage.vault import Vault

log = logging.getLogger(__name__)

POINTER: Final = "pointer.json"
POLL_S: Final = 0.2
# Preparing is slow, and if node 0 fails its attempt ends anyway: this only catches a volume that is not shared.
DEADLINE_S: Final = 24 * 3600.0
REPORT_EVERY_S: Final = 60.0


def point(paths: Paths, run_id: str, name: str, vault: Vault) -> None:
    """Point the nodes of this run to `prepared/<name>`.

    Raises TryAgainError if the run was pointed elsewhere before: its input has changed since.
    """
    home = _home(paths, run_id)
    if not home.exists():
        with committed(home) as partial:
            vault.write(partial / POINTER, json_text({"runId": run_id, "data": name}).encode())
    if pointed_to(paths, run_id, vault) != name:
        raise TryAgainError(
            f"the data changed while run {run_id} used them",
            hint="do not change data that a job trains on; the next attempt takes them as they are then",
        )


def pointed_to(paths: Paths, run_id: str, vault: Vault) -> str | None:
    """The name of this run's prepared data; None while there are none."""
    home = _home(paths, run_id)
    if not home.exists():
        return None
    name, owner = vault.document(home / POINTER, lambda pointer: (file_name(pointer["data"]), pointer["runId"]))
    if owner != run_id:
        raise IntegrityError(f"{home / POINTER} belongs to run {shown(owner)}, not to {run_id}", hint=f"delete {home}")
    return name


def wait(paths: Paths, run_id: str, vault: Vault, deadline_s: float = DEADLINE_S) -> str:
    """The name of this run's prepared data, as soon as node 0 has left a pointer.

    Raises TryAgainError after `deadline_s`.
    """
    start = reported = time.monotonic()
    while (name := pointed_to(paths, run_id, vault)) is None:
        now = time.monotonic()
        if now - start >= deadline_s:
            raise TryAgainError(
                f"node 0 prepared nothing for run {run_id} below {paths.prepared} in {deadline_s:.0f} s",
                hint="see the log of node 0; all nodes must mount the same volume",
            )
        if now - reported >= REPORT_EVERY_S:
            log.info("waiting for node 0 to prepare the data: %.0f s", now - start)
            reported = now
        time.sleep(POLL_S)
    return name


def _home(paths: Paths, run_id: str) -> Path:
    return paths.prepared / "runs" / run_id
