"""`dstj checkpoint prune`: deletes older checkpoints by the rules of a run that saves."""

from argparse import Namespace
from pathlib import Path
from typing import Final

from deepseek_trainer.checkpoints.catalog import read_head, step_directory
from deepseek_trainer.checkpoints.ledger import Ledger
from deepseek_trainer.contract.errors import ConfigError, DataError
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.storage.trees import files_in
from deepseek_trainer.storage.vault import Vault
from dstj.commands.checkpoints import opened
from dstj.local.home import Home
from dstj.local.work import Work, checkpoint_of, not_running, work_of
from dstj.screen.progress import bar
from dstj.screen.view import MIB

MOST: Final = 1000  # checkpoints, as in checkpoint.retention.keepLast


def prune(arguments: Namespace) -> int:
    """Delete what the job's retention gives up.  The best checkpoint and the newest authentic one always stay.

    A run that still writes there is shut out.
    """
    work = work_of(arguments)
    with not_running(arguments):
        _prune(work, opened(work), _retention(arguments))
    return ExitCode.DONE


def _retention(arguments: Namespace) -> Retention:
    """The retention of the job, changed by the options.

    The best checkpoint stays, whatever the job says: its step in the record is all that shows why it was kept.
    """
    last, every, own = arguments.keep_last, arguments.keep_every, _of_job(arguments)
    if last and last > MOST:
        raise ConfigError(f"--keep-last {last}: must be at most {MOST}", hint=f"--keep-last {MOST}")
    return Retention(keep_last=last or own.keep_last, keep_every=own.keep_every if every is None else every or None)


def _of_job(arguments: Namespace) -> Retention:
    if arguments.directory:
        return Retention()
    checkpoint = checkpoint_of(Home.from_env().known_job(arguments.name))
    return Retention.model_validate(checkpoint.get("retention") or {})


def _prune(work: Work, vault: Vault, retention: Retention) -> None:
    if read_head(work.checkpoints, vault) is None:
        raise DataError(f"no checkpoints in {work.checkpoints}", hint="the first one comes after checkpoint.interval")
    ledger = Ledger(work.checkpoints, vault)
    ledger.take_over()
    before = ledger.head()
    sizes = {step: _size_bytes(step_directory(work.checkpoints, step)) for step in before.steps}
    with bar("verifying", sizes[before.steps[-1]] if sizes else 0) as advance:
        ledger.newest_whole(advance)  # so that a damaged checkpoint does not count among those kept
    ledger.prune(retention, before.best)
    _print_deleted(sizes, ledger.head().steps)


def _print_deleted(sizes: dict[int, int], kept: tuple[int, ...]) -> None:
    gone = [step for step in sizes if step not in kept]
    for step in gone:
        say(f"step {step}: deleted, {sizes[step] / MIB:.1f} MiB")
    freed, left = sum(sizes[step] for step in gone), ", ".join(map(str, kept)) or "none"
    say(f"{len(gone)} deleted, {freed / MIB:.1f} MiB freed; kept: {left}")


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in files_in(directory))
