"""`dstj checkpoint` and `dstj result`: list, verify and decrypt what a job has saved."""

import time
from argparse import Namespace
from pathlib import Path

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, Refused, list_checkpoints, read_head
from deepseek_trainer.checkpoints.catalog import verify as verify_whole
from deepseek_trainer.checkpoints.unseal import decrypt as decrypt_to
from deepseek_trainer.contract.errors import DataError, IntegrityError
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.result.manifest import Manifest, open_result, open_without_manifest
from deepseek_trainer.result.unseal import decrypt_result
from deepseek_trainer.storage.durable import reading
from deepseek_trainer.storage.renaming import PARTIAL
from deepseek_trainer.storage.streams import Advance
from deepseek_trainer.storage.vault import Purpose, Vault
from dstj.local.work import Work, work_of
from dstj.screen.errors import print_error
from dstj.screen.progress import bar
from dstj.screen.table import lines
from dstj.screen.view import MIB

HEAD = ("STEP", "CREATED", "SIZE", "KEY", "MANIFEST", "BEST", "STATE")


def show(arguments: Namespace) -> int:
    """Print a line for each checkpoint, with the reason for those that must not be used."""
    found, _ = _found(work_of(arguments))
    for line in lines([HEAD, *map(_row, found)]):
        say(line)
    return ExitCode.DONE


def _row(each: CheckpointInfo | Refused) -> tuple[str, ...]:
    if isinstance(each, Refused):
        return str(each.step), "-", "-", "-", "-", "-", each.reason
    size = f"{each.size_bytes / MIB:.1f} MiB"
    digest = each.manifest_digest.rpartition(":")[2][:16]  # without the name of its function
    key, best = each.key_id or "in the clear", "yes" if each.best else "-"
    return str(each.step), each.created, size, key, digest, best, "ok"


def verify(arguments: Namespace) -> int:
    """Read every byte, and print a line for each checkpoint once it is read.  Exit code 77 if one is not authentic."""
    found, vault = _found(work_of(arguments))
    total = sum(each.size_bytes for each in found if isinstance(each, CheckpointInfo))
    with bar("verifying", total) as advance:
        results = [_is_authentic(each, vault, advance) for each in found]
    return ExitCode.DONE if all(results) else ExitCode.INTEGRITY


def _is_authentic(each: CheckpointInfo | Refused, vault: Vault, advance: Advance) -> bool:
    if isinstance(each, Refused):
        print_error(f"step {each.step}: {each.reason}")
        return False
    started = time.monotonic()
    try:
        with reading(each.path):
            verify_whole(each, vault, advance)
    except IntegrityError as error:
        print_error(f"step {each.step}: {error.problem}", error.hint)
        return False
    say(f"step {each.step}: ok, {each.size_bytes / MIB:.1f} MiB in {time.monotonic() - started:.1f} s", flush=True)
    return True


def decrypt(arguments: Namespace) -> int:
    """Write one checkpoint's files as they were before they were sealed."""
    found, vault = _found(work_of(arguments))
    good = {each.step: each for each in found if isinstance(each, CheckpointInfo)}
    step = max(good, default=None) if arguments.step is None else arguments.step
    if step not in good:
        steps = ", ".join(map(str, good)) or "none"
        raise DataError(f"no checkpoint of step {step} that can be trusted", hint=f"steps that can be: {steps}")
    with bar("decrypting", good[step].size_bytes) as advance:
        decrypt_to(good[step], vault, Path(arguments.to), advance)
    say(f"step {step} is in {arguments.to}, in the clear: readable by you only; delete it after use")
    return ExitCode.DONE


def result(arguments: Namespace) -> int:
    """Write the exported model, adapter, model card and report in the clear."""
    work = work_of(arguments)
    directory, vault = _exported(work.export), work.vault(Purpose.EXPORT, sealed=work.is_sealed)
    found = (open_without_manifest if arguments.without_manifest else open_result)(directory, vault)
    if found.manifest is not None:
        _refuse_replaced(work, found.manifest)
    with bar("decrypting", found.size_bytes) as advance:
        decrypt_result(found, Path(arguments.to), advance)
    say(f"{directory}{_origin(found.manifest)} is in {arguments.to}, in the clear")
    return ExitCode.DONE


def _refuse_replaced(work: Work, manifest: Manifest) -> None:
    """Raise IntegrityError if the checkpoints beside it record that the job has exported another result since."""
    if not work.checkpoints.is_dir() or manifest.commit is None:
        return
    head = read_head(work.checkpoints, work.vault(Purpose.CHECKPOINT, sealed=work.is_sealed))
    if head is None or head.exported is None:
        return
    # A run that crashed between its export and the record of it has exported the newest checkpoint.
    newest = head.newest.digest if head.newest else None
    if manifest.commit not in (head.exported, newest):
        raise IntegrityError(
            f"{work.export / manifest.name} is not the last result of the job{_origin(manifest)}",
            hint="an older one was put in its place: restore the last one from a backup, or let the job export it "
            "again; without the directory checkpoints nobody compares",
        )


def _origin(manifest: Manifest | None) -> str:
    """When it was made of which step, as far as that is known."""
    return "" if manifest is None else f", of step {manifest.step}, exported {manifest.created},"


def opened(work: Work) -> Vault:
    """The vault of a job's checkpoints.  Raises DataError if none was ever written, and what Work.vault raises."""
    if not work.checkpoints.is_dir():
        raise DataError(f"no checkpoints in {work.checkpoints}", hint="the first one comes after checkpoint.interval")
    return work.vault(Purpose.CHECKPOINT, sealed=work.is_sealed)


def _found(work: Work) -> tuple[list[CheckpointInfo | Refused], Vault]:
    vault = opened(work)
    return list_checkpoints(work.checkpoints, vault), vault


def _exported(directory: Path) -> Path:
    """The one result in the export directory.  Names with `.partial-` are of results that were not finished."""
    results = [path for path in directory.glob("*") if path.is_dir() and PARTIAL not in path.name]
    if links := [path for path in (directory, *results) if path.is_symlink()]:
        raise IntegrityError(f"{links[0]} is a link", hint="a job writes its result to its own volume: name that")
    if not results:
        raise DataError(f"no result in {directory}", hint="the job has not succeeded yet")
    if len(results) > 1:
        raise DataError(
            f"{len(results)} results in {directory}, a job has one", hint="name the work volume of a single job"
        )
    return results[0]
