"""`dstj checkpoint` and `dstj result`: list, verify and decrypt what a job has saved."""

import time
from argparse import Namespace
from pathlib import Path

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, Refused, list_checkpoints
from deepseek_trainer.checkpoints.catalog import verify as verify_whole
from deepseek_trainer.checkpoints.unseal import decrypt as decrypt_to
from deepseek_trainer.checkpoints.unseal import decrypt_result
from deepseek_trainer.contract.errors import DataError, IntegrityError
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.storage.durable import reading
from deepseek_trainer.storage.streams import Advance
from deepseek_trainer.storage.vault import SUFFIX, Purpose, Vault
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
    key, digest, best = each.key_id or "in the clear", each.manifest_digest[:16], "yes" if each.best else "-"
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
    source = _exported(work.export)
    files = [path for path in source.rglob("*") if path.is_file()]
    vault = work.vault(Purpose.EXPORT, sealed=any(path.suffix == SUFFIX for path in files))
    with bar("decrypting", sum(path.stat().st_size for path in files)) as advance:
        decrypt_result(source, vault, Path(arguments.to), advance)
    say(f"{source} is in {arguments.to}, in the clear")
    return ExitCode.DONE


def opened(work: Work) -> Vault:
    """The vault of a job's checkpoints.  Raises DataError if none was ever written, and what Work.vault raises."""
    if not work.checkpoints.is_dir():
        raise DataError(f"no checkpoints in {work.checkpoints}", hint="the first one comes after checkpoint.interval")
    return work.vault(Purpose.CHECKPOINT, sealed=work.key_dir is not None or work.keyring.exists())


def _found(work: Work) -> tuple[list[CheckpointInfo | Refused], Vault]:
    vault = opened(work)
    return list_checkpoints(work.checkpoints, vault), vault


def _exported(directory: Path) -> Path:
    """The one result in the export directory.  Names with `.partial-` are of results that were not finished."""
    results = [path for path in directory.glob("*") if path.is_dir() and ".partial" not in path.name]
    if not results:
        raise DataError(f"no result in {directory}", hint="the job has not succeeded yet")
    if len(results) > 1:
        raise DataError(
            f"{len(results)} results in {directory}, a job has one", hint="name the work volume of a single job"
        )
    return results[0]
