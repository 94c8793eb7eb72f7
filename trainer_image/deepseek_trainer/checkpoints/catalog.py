"""Finds, authenticates and opens checkpoints, for whoever reads them.  Writes nothing."""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deepseek_trainer.checkpoints.manifest import HEAD, MANIFEST, Head, Manifest, RankFile
from deepseek_trainer.checkpoints.statefile import State
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.durable import reading
from deepseek_trainer.storage.streams import Advance, unwatched
from deepseek_trainer.storage.vault import MAX_DOCUMENT, Context, Vault, refuse_larger

_STEP: Final = re.compile(r"step-([0-9]{8,20})")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A complete checkpoint whose manifest has been authenticated."""

    path: Path
    manifest: Manifest
    manifest_digest: str
    best: bool  # whether it has the lowest validation loss of those that are kept
    exported: bool = False  # whether its run has ended with it, and exported its model

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def created(self) -> str:
        return self.manifest.created

    @property
    def size_bytes(self) -> int:
        return sum(file.record.size for file in self.manifest.files)

    @property
    def sealed(self) -> bool:
        return self.manifest.key_id is not None

    @property
    def key_id(self) -> str | None:
        return self.manifest.key_id

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.manifest.meta


@dataclass(frozen=True, slots=True)
class Refused:
    """A checkpoint that must not be used, and why."""

    step: int
    path: Path
    reason: str
    unreadable: bool = False  # the disk refused to read it, and may give it back another time


def step_directory(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def steps_in(directory: Path) -> list[int]:
    """The steps of the complete checkpoints that lie there, in order, whether they can be trusted or not."""
    return sorted(step for path in directory.glob("step-*") if (step := _step_of(path)) is not None)


def misnamed_in(directory: Path) -> list[Path]:
    """What lies there by a name that is like a checkpoint's, but that we never give.  It is left alone."""
    return sorted(path for path in directory.glob("step-*") if "." not in path.name and _step_of(path) is None)


def _step_of(path: Path) -> int | None:
    """The step of a checkpoint's directory; None by any other name, also for one of more zeros or other digits."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match and step_directory(path.parent, int(match[1])).name == path.name else None


def read_head(directory: Path, vault: Vault) -> Head | None:
    """The record of a store's checkpoints; None if the store has never been used.

    Raises IntegrityError where the record was changed, belongs to another job, or is missing beside checkpoints.
    """
    path = directory / HEAD
    if not vault.exists(path) and not steps_in(directory):
        return None
    head = Head.from_json(vault.read(path, max_bytes=MAX_DOCUMENT))
    if vault.job not in ("", head.job):
        raise IntegrityError(
            f"{directory} holds checkpoints of job {head.job}, not of {vault.job}", hint="give each job its own volume"
        )
    return head


def find(directory: Path, vault: Vault, head: Head, step: int) -> CheckpointInfo:
    """The checkpoint of `step`, as `head` records it.

    Raises IntegrityError where it is missing or damaged, or another one was put in its place.
    """
    path, digest = step_directory(directory, step), head.digest_of(step)
    if digest is None:
        raise IntegrityError(f"{path} is not in the store's {HEAD}", hint="it was copied there, or set aside")
    info = open_checkpoint(path, step, vault, digest, best=head.best == step, exported=head.exported == digest)
    if info.manifest_digest != digest:
        raise IntegrityError(
            f"{path} is not the checkpoint that was committed", hint="an older or set-aside one was put in its place"
        )
    return info


def open_checkpoint(
    path: Path, step: int, vault: Vault, recorded: str | None = None, *, best: bool = False, exported: bool = False
) -> CheckpointInfo:
    """The checkpoint of this job and step at `path`, with its digest like the `recorded` one, if it was recorded.

    Checks its manifest and its files' sizes.
    """
    with vault.open_reader(path / MANIFEST, Context(step)) as reader:
        refuse_larger(path / MANIFEST, reader.size, MAX_DOCUMENT)
        content = bytearray(reader.size)
        digest = reader.read_into(memoryview(content), recorded)
    manifest = Manifest.from_json(content)
    if manifest.step != step or vault.job not in ("", manifest.job):
        raise IntegrityError(f"{path} is step {manifest.step} of job {manifest.job}", hint="it was moved there")
    for file in manifest.files:
        _check_size(vault.on_disk(path / file.record.name), file.record.size)
    return CheckpointInfo(path, manifest, digest, best, exported)


def verify(info: CheckpointInfo, vault: Vault, advance: Advance = unwatched) -> None:
    """Read every byte of a checkpoint; `advance` is called with the size of each piece [bytes], from any thread.

    Raises IntegrityError at the first file that does not authenticate.
    """
    for file in info.manifest.files:
        path, place = info.path / file.record.name, place_of(info, file)
        vault.verify(path, place, digest=file.record.digest, advance=advance)


def read_rest(info: CheckpointInfo, rank: int, vault: Vault) -> State:
    """What a rank saved beside its tensors; {} for a rank that did not exist then."""
    for file in info.manifest.files_of(rank):
        if file.record.name.endswith(".json"):
            return _tree(vault.read(info.path / file.record.name, place_of(info, file), digest=file.record.digest))
    return {}


def list_checkpoints(directory: Path, vault: Vault) -> list[CheckpointInfo | Refused]:
    """All checkpoints in order; those that must not be used come with the reason.  Reads manifests, not the data."""
    head = read_head(directory, vault)
    if head is None:
        return []
    steps = sorted({*steps_in(directory), *head.steps[-1:]})
    return [_found_or_refused(directory, vault, head, step) for step in steps]


def _found_or_refused(directory: Path, vault: Vault, head: Head, step: int) -> CheckpointInfo | Refused:
    path = step_directory(directory, step)
    try:
        with reading(path):
            return find(directory, vault, head, step)
    except IntegrityError as error:
        return Refused(step, path, error.problem)


@contextmanager
def telling(info: CheckpointInfo) -> Iterator[None]:
    """Raise IntegrityError in place of an error that a wrong or missing value in the manifest's meta leads to."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise IntegrityError(
            f"the manifest in {info.path} does not tell how its run goes on", hint="restore it from a backup"
        ) from None


def place_of(info: CheckpointInfo, file: RankFile) -> Context:
    return Context(info.step, file.rank)


def _check_size(path: Path, expected: int) -> None:
    actual = path.stat().st_size if path.exists() else None
    if actual != expected:
        found = "is missing" if actual is None else f"has {actual:,} bytes"
        raise IntegrityError(f"{path} {found}, recorded were {expected:,}", hint="restore it from a backup")


def _tree(content: bytearray) -> State:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise IntegrityError("a rank's JSON state is no JSON object", hint="restore it from a backup")
    return tree
