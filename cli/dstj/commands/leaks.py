"""`dstj doctor --sealed`: looks for private bytes in the clear in everything that a sealed job has left."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepseek_trainer.contract.errors import ConfigError, JobError
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import SERVER_TOKEN, ExitCode
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.kek import Kek
from deepseek_trainer.storage.key_directory import keks_at
from deepseek_trainer.storage.keyring import owner_of
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.vault import Purpose
from dstj.leaks.look import Finding, Look, Place, Total
from dstj.leaks.needles import Needle, needles_of_keys, needles_of_token, needles_of_words
from dstj.leaks.places import BESIDE, HOME, HOME_OTHERS, VOLUME_OTHERS, Allowed, volume
from dstj.leaks.sealed import Vaults
from dstj.leaks.swap import swap_in_the_clear
from dstj.leaks.tree import entries
from dstj.local.home import Home, JobHome
from dstj.local.store import stored
from dstj.local.work import Work, not_running, work_of
from dstj.screen.checks import print_check
from dstj.screen.errors import print_error
from dstj.screen.progress import bar
from dstj.screen.table import lines
from dstj.screen.view import MIB

ON_PURPOSE = ("IN THE CLEAR ON PURPOSE", "FILES", "SIZE", "WHY")
LEAKS = ("LEAK", "OFFSET", "WHAT", "WHY")
_NAMES = ("names and sizes of all files", "-", "-", "file systems show them; they tell steps, ranks and sizes")


def leaks(arguments: Namespace) -> int:
    """Print what is in the clear, and why, and every leak.  Exit code 77 if there is one, or the key is wrong."""
    if bool(arguments.name) == bool(arguments.directory):
        print_error("dstj doctor --sealed: name a local JOB, or else a --directory", "dstj doctor --help")
        return ExitCode.USAGE
    needles = needles_of_words(Path(arguments.words)) if arguments.words else []
    with not_running(arguments):
        return _leaks(arguments, work_of(arguments), needles)


def _leaks(arguments: Namespace, work: Work, words: Sequence[Needle]) -> int:
    vaults, keys, problem = _keys(work)
    look = Look([*words, *keys])
    found = [(place, entry) for place in _places(arguments, work, vaults) for entry in entries(place.root, place.but)]
    with bar("looking", sum(entry.size for _, entry in found)) as advance:
        findings = [finding for place, entry in found for finding in look.at(place, entry, advance)]
    _print_checks(look, vaults, problem, searched=bool(words))
    _print_tables(look, findings)
    return ExitCode.INTEGRITY if findings or problem else ExitCode.DONE


def _keys(work: Work) -> tuple[Vaults, list[Needle], str]:
    """The vaults of the work volume, what its keys look like in the clear, and why they cannot be had.

    Without a key, or before the first file is sealed, there are no vaults, and nothing is wrong.
    """
    try:
        keks = keks_at(work.key_dir) if work.key_dir else []
        needles = _needles_of_keks(keks, work)
        if not keks or not work.keyring.is_file():
            return {}, needles, ""
        data_keys = JobKeys(work.keyring, owner_of(work.keyring), keks).to_read()
        vaults = {purpose: work.vault(purpose, sealed=True) for purpose in Purpose}
        return vaults, [*needles, *needles_of_keys(data_keys, "the data key")], ""
    except JobError as error:  # a wrong key, or a key server that does not answer
        return {}, [], error.problem


def _needles_of_keks(keks: Sequence[Kek], work: Work) -> list[Needle]:
    """Keys in files, or the token that a key server takes; its keys never were here."""
    token = work.key_dir and work.key_dir / SERVER_TOKEN
    tokens = needles_of_token(token) if token and token.is_file() else []
    return [*tokens, *needles_of_keys((kek for kek in keks if isinstance(kek, Key)), "the key-encryption key")]


def _places(arguments: Namespace, work: Work, vaults: Vaults) -> Iterator[Place]:
    if arguments.name:
        job = Home.from_env().known_job(arguments.name)
        yield Place(work.directory.resolve(), _of_volume(job, work), VOLUME_OTHERS, vaults)
        yield Place(job.directory, HOME, HOME_OTHERS, but=work.directory.name)
    else:
        yield Place(_existing("--directory", work.directory), volume(), VOLUME_OTHERS, vaults)
    yield from (Place(_existing("--also", Path(path)), BESIDE) for path in arguments.also)


def _existing(option: str, path: Path) -> Path:
    if not path.exists():
        raise ConfigError(f"{option} {path}: no such file or directory", hint="name what is there")
    return path.resolve()


def _of_volume(job: JobHome, work: Work) -> Sequence[Allowed]:
    """What the job's own file lets lie on its volume in the clear.  Raises ConfigError if that is everything."""
    spec = (stored(job) or {"spec": {}})["spec"]
    if work.key_dir is None and not work.keyring.exists():
        raise ConfigError(
            f"{job.directory.name} seals nothing: all that it writes is in the clear",
            hint="give checkpoint.encryption.keyRef",
        )
    seals = {part: (spec.get(part) or {}).get("sealed") is not False for part in ("data", "export")}
    return volume(data_sealed=seals["data"], export_sealed=seals["export"])


def _print_checks(look: Look, vaults: Vaults, problem: str, *, searched: bool) -> None:
    sealed, authentic = look.sealed, look.authentic
    print_check("ok" if sealed.files else "warn", "sealed", f"{sealed.files} files, {_size(sealed)}")
    if problem:
        print_check("fail", "key", problem, "sealed files were held against chance only")
    elif vaults:
        print_check("ok", "key", f"{authentic.files} of {sealed.files} sealed files authenticate, byte for byte")
    else:
        print_check(
            "warn", "key", "no sealed file was authenticated", "it takes the volume's keyring and --key-dir DIR"
        )
    if not searched:
        print_check("warn", "words", "none were looked for", "give --words FILE with words of your data, one a line")
    for device in swap_in_the_clear():
        print_check("warn", "swap", f"{device} is not known to be encrypted", "swapoff -a, or swap on dm-crypt")


def _print_tables(look: Look, findings: Sequence[Finding]) -> None:
    rows = [
        (str(root / rule.glob), str(total.files), _size(total), rule.why)
        for (root, rule), total in look.on_purpose.items()
    ]
    tables = [[ON_PURPOSE, _NAMES, *rows]]
    if findings:
        tables.append([LEAKS, *((each.path, _offset(each), each.what, each.why) for each in findings)])
    for table in tables:
        say()
        for line in lines(table):
            say(line)
    say()
    say(f"{len(findings)} findings: private bytes may be in the clear" if findings else "no leak was found")


def _size(total: Total) -> str:
    return f"{total.size / MIB:.1f} MiB" if total.size >= MIB else f"{total.size / 1024:.1f} KiB"


def _offset(finding: Finding) -> str:
    return "-" if finding.offset is None else str(finding.offset)
