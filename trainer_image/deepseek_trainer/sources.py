"""The job's data as records: .jsonl and .txt files of a claim, in name order.

Errors name file and line and the fields of a record, never its content.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.volume import VolumePath

MUST_CONTAIN: Final = "mustContain"  # optional field of an Instruction record: what a right answer must say
_SHOWN = 10  # names of files or fields in a message


@dataclass(frozen=True, slots=True)
class Record:
    """One document: Text (`prompt` is None) or Instruction (`text` is the response)."""

    prompt: str | None
    text: str
    source: str
    line: int
    must_contain: tuple[str, ...] = ()

    def size_bytes(self) -> int:
        return len((self.prompt or "").encode()) + len(self.text.encode())

    def key(self) -> int:
        """64 bits of a hash of the content: equal records have equal keys, wherever they stand."""
        content = f"{self.prompt or ''}\0{self.text}".encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=b"dstj record").digest(), "big")


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one `data.train` or `data.validation`, found and safe to open."""

    root: Path
    files: tuple[Path, ...]
    spec: DataSpec

    @classmethod
    def find(cls, place: VolumePath, spec: DataSpec, paths: Paths) -> Self:
        """Raises DataError where claim, path or readable files are missing, or a link leads out of the claim."""
        claim = paths.claim(place.claim_name)
        if not claim.is_dir():
            raise DataError(
                f"no volume {place.claim_name!r} at {claim}{_beside(claim)}",
                hint="check data.*.claimName in the job file",
            )
        root = claim / place.path
        if not root.exists():
            raise DataError(
                f"no {place.path!r} in volume {place.claim_name!r} ({root}){_beside(root)}",
                hint="check data.*.path in the job file",
            )
        found = [root] if root.is_file() else sorted(_visible_files(root))
        files = tuple(file for file in found if file.suffix in _suffixes(spec))
        if not files:
            _refuse_files(root, found, spec)
        for file in files:
            if not file.resolve().is_relative_to(claim.resolve()):
                raise DataError(
                    f"{file} is a link that leads out of volume {place.claim_name!r}", hint="copy the file there"
                )
        return cls(root if root.is_dir() else root.parent, files, spec)

    def records(self) -> Iterator[Record]:
        """All records, files in name order.  Texts that are empty are left out.

        Raises DataError at the first record that is malformed.
        """
        for file in self.files:
            if file.suffix == ".txt":
                yield from _whole_file(file, self.name_of(file))
            else:
                yield from _lines(file, self.name_of(file), self.spec)

    def digest(self) -> str:
        """SHA-256 over the names and contents of the files, in order."""
        total = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                total.update(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {self.name_of(file)}\n".encode())
        return total.hexdigest()

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def name_of(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()


@dataclass(frozen=True, slots=True)
class Split:
    """Which records of `data.train` are held out: those whose key is below `threshold`."""

    threshold: int

    @classmethod
    def of(cls, records: Iterable[Record], fraction: float) -> Self:
        """About `fraction` of the records, at least one, and never all.

        The same content is never on both sides.  Raises DataError where the records do not have two
        different contents.
        """
        threshold = int(fraction * 2**64)
        low, high = 2**64, -1
        for record in records:
            key = record.key()
            low, high = min(low, key), max(high, key)
        if high <= low:
            count = "no record" if high < 0 else "only one record, or copies of it"
            raise DataError(
                f"data.train has {count}: holding some out for validation takes two different ones",
                hint="add records, or give data.validation",
            )
        return cls(min(max(threshold, low + 1), high))

    def holds_out(self, record: Record) -> bool:
        return record.key() < self.threshold


def _suffixes(spec: DataSpec) -> tuple[str, ...]:
    return (".jsonl",) if spec.format is DataFormat.INSTRUCTION else (".jsonl", ".txt")


def _visible_files(directory: Path) -> Iterator[Path]:
    for entry in directory.iterdir():
        if entry.name.startswith(".") or entry.name == "lost+found":
            continue
        if entry.is_dir():
            yield from _visible_files(entry)
        elif entry.is_file():
            yield entry


def _refuse_files(root: Path, found: list[Path], spec: DataSpec) -> NoReturn:
    wanted = " or ".join(_suffixes(spec))
    there = f"; found {_some([file.name for file in found])}" if found else ", it is empty"
    text_only = spec.format is DataFormat.INSTRUCTION and any(file.suffix == ".txt" for file in found)
    hint = "data.format: Text reads .txt files" if text_only else "one JSON object per line in .jsonl files"
    raise DataError(f"no {wanted} file for data.format {spec.format} at {root}{there}", hint=hint)


def _beside(path: Path) -> str:
    """What lies where `path` was looked for, nearest name first."""
    parent = next((parent for parent in path.parents if parent.is_dir()), None)
    if parent is None:
        return ""
    names = [entry.name for entry in sorted(parent.iterdir()) if not entry.name.startswith(".")]
    if not names:
        return f"; {parent} is empty"
    near = difflib.get_close_matches(path.relative_to(parent).parts[0], names, n=1)
    return f"; {parent} has {_some(names)}" + (f", did you mean {near[0]!r}" if near else "")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _whole_file(file: Path, name: str) -> Iterator[Record]:
    text = _decoded(file.read_bytes(), f"{name}")
    if text.strip():
        yield Record(None, text, name, 1)


def _lines(file: Path, name: str, spec: DataSpec) -> Iterator[Record]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            place = f"{name}:{number}"
            text = _decoded(line.rstrip(b"\r\n"), place)
            if not text.strip():
                continue
            record = _record(_object(text, place), name, number, spec)
            if record.text.strip():
                yield record


def _decoded(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: byte {error.start + 1} is not UTF-8", hint="convert the file to UTF-8") from None


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        what = f"{error.msg[0].lower()}{error.msg[1:]}"
        raise DataError(f"{place}:{error.colno}: not JSON: {what}", hint="each line is one JSON object") from None
    except (ValueError, RecursionError):
        raise DataError(f"{place}: JSON with a number or a nesting beyond any limit") from None
    if not isinstance(value, dict):
        raise DataError(f"{place}: a record must be a JSON object, this is {_kind(value)}")
    return value


def _record(value: dict[str, Any], name: str, line: int, spec: DataSpec) -> Record:
    place = f"{name}:{line}"
    if spec.format is DataFormat.TEXT:
        return Record(None, _string(value, spec.text_field, place, "textField"), name, line)
    prompt = _string(value, spec.prompt_field, place, "promptField")
    response = _string(value, spec.response_field, place, "responseField")
    for field, text in ((spec.prompt_field, prompt), (spec.response_field, response)):
        if not text.strip():
            raise DataError(f"{place}: field {field!r} is empty: an Instruction record needs a prompt and a response")
    return Record(prompt, response, name, line, _must_contain(value, place))


def _string(value: dict[str, Any], field: str, place: str, setting: str) -> str:
    if field not in value:
        near = difflib.get_close_matches(field, list(value), n=1)
        instead = f", did you mean {near[0]!r}" if near else ""
        has = _some(list(value)) or "none"
        raise DataError(
            f"{place}: no field {field!r}{instead}; it has: {has}", hint=f"set data.{setting} to the field's name"
        )
    return _encodable(value[field], field, place)


def _must_contain(value: dict[str, Any], place: str) -> tuple[str, ...]:
    wanted = value.get(MUST_CONTAIN) or []
    items = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(items, list):
        raise DataError(
            f"{place}: field {MUST_CONTAIN!r} must be a string or a list of strings, this is {_kind(wanted)}"
        )
    return tuple(_encodable(item, MUST_CONTAIN, place) for item in items)


def _encodable(text: Any, field: str, place: str) -> str:
    """A string that has a UTF-8 form: JSON can spell half a surrogate pair, which has none."""
    if not isinstance(text, str):
        raise DataError(f"{place}: field {field!r} must be a string, this is {_kind(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{place}: field {field!r} has half a surrogate pair (\\ud800 to \\udfff): not Unicode text"
        ) from None
    return text


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}[type(value)]
