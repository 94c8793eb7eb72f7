"""`dstj keys inspect`: lists keys by their ids, and which of them wraps which.  It never shows a key."""

import os
import stat
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from deepseek_trainer.contract.errors import ConfigError, JobError
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.contract.times import rfc3339
from deepseek_trainer.storage.kek import Kek
from deepseek_trainer.storage.key_directory import files_at, kek_at, keks_at
from deepseek_trainer.storage.keyring import Keyring, read_keyring
from deepseek_trainer.storage.keyring_format import Content, Content1
from dstj.local.work import Work, work_of
from dstj.screen.table import lines

KEYS = ("KEY", "FILE", "MODE", "OWNER", "CHANGED", "STATE")
DATA_KEYS = ("DATA KEY", "CREATED", "WRAPPED BY", "FILE", "USE")

Row = Sequence[str]


def inspect(arguments: Namespace) -> int:
    """Print the keys of a directory or of a local job's secret, and the keyring of a job."""
    work = _inspected(arguments)
    files = files_at(work.key_dir) if work.key_dir else []
    ids = {file: _id_or_problem(file) for file in files}
    if work.key_dir:
        say(f"keys in {work.key_dir}")
        _print([KEYS, *(_key_row(file, *ids[file]) for file in files)])
    if arguments.name or arguments.directory:
        _print_keyring(work.keyring, work.key_dir, {key: file for file, (key, _) in ids.items()})
    return ExitCode.DONE


def _inspected(arguments: Namespace) -> Work:
    if arguments.name or arguments.directory:
        return work_of(arguments)
    if not arguments.key_dir:
        raise ConfigError(
            "keys inspect: no keys are named", hint="give a local job's NAME, --directory DIR or --key-dir DIR"
        )
    return Work(Path(), Path(arguments.key_dir))


def _id_or_problem(file: Path) -> tuple[str, str]:
    try:
        return kek_at(file).id, ""
    except JobError as error:
        return "-", error.problem


def _key_row(file: Path, key: str, problem: str) -> Row:
    status = file.stat()
    changed = rfc3339(datetime.fromtimestamp(status.st_mtime, UTC))
    return key, file.name, _mode(status), str(status.st_uid), changed, problem or "ok"


def _print_keyring(path: Path, key_dir: Path | None, files: Mapping[str, Path]) -> None:
    content = read_keyring(path)
    say(f"keyring {path} of {content.job}, mode {_mode(path.stat())}, {content.format}")
    wrapped = sorted(_wrapped(content), key=lambda each: each[0] != content.primary)
    rows = []
    for key, created, kek in wrapped:
        use = "seals new files" if key == content.primary else "reads older files"
        rows.append((key, created, kek, files[kek].name if kek in files else "not here", use))
    _print([DATA_KEYS, *rows])
    if key_dir and set(content.keks) & files.keys():
        say(f"  {_state(path, content.job, keks_at(key_dir))}")


def _wrapped(content: Content | Content1) -> list[tuple[str, str, str]]:
    """Each data key, when it was made, and a key that wraps it."""
    if isinstance(content, Content1):
        return [(key.id, key.created, key.kek) for key in content.keys]
    return [(key.id, key.created, kek) for key in content.keys for kek in content.keks]


def _state(path: Path, job: str, keks: Sequence[Kek]) -> str:
    try:
        ring = Keyring.open(path, job, keks)
    except JobError as error:
        return error.problem
    if not ring.is_current:
        return "not authenticated, as in all keyrings of its format: dstj keys rotate writes the newer one"
    return f"authentic: {ring.opener.id} opens it"


def _print(rows: Sequence[Row]) -> None:
    for line in lines(rows):
        say(f"  {line}")


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
