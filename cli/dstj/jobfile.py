"""Reads job files: YAML in, a checked job out, and every problem with its line.

YAML is read as the API server reads it, and not as PyYAML does by default: 5e-5 is a number, a date is a string, and a
key that is given twice is refused.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from deepseek_operator.api.names import API_VERSION, GROUP, KIND, PROFILE_KIND
from deepseek_operator.jobs.limits import profile_mismatch
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.spec import JobSpec
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_line, shown
from deepseek_trainer.storage.opening import content_of
from dstj.problems import messages, model_of

Manifest = dict[str, Any]

MAX_NODES = 1 << 20  # of a document
PIPES = (Path("/dev"), Path("/dev/fd"))  # of the shell: `... | dstj validate /dev/stdin`, `dstj validate <(...)`
MAX_BYTES = 16 << 20  # of a file; an API server takes at most 3 MiB of an object


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as Go's sigs.k8s.io/yaml reads it."""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own protocol
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{shown(key.value)} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document, and the lines of its fields."""

    path: Path
    node: yaml.Node
    content: Any

    @property
    def kind(self) -> Any:
        return self.content.get("kind") if isinstance(self.content, dict) else None

    @property
    def is_ours(self) -> bool:
        """Whether `dstj` checks it.  A claim or a secret in the same file is left to the API server."""
        if not isinstance(self.content, dict):
            return True
        api_version = self.content.get("apiVersion")
        return model_of(self.kind) is not None or not api_version or str(api_version).startswith(f"{GROUP}/")

    def at(self, message: str) -> str:
        """`message` ("field.path: rule") after the file and line of the field, or of its nearest parent in the file."""
        return f"{self.path}:{_line(self.node, message.split(': ', 1)[0])}: {message}"


def _line(node: yaml.Node, field: str) -> int:
    line = node.start_mark.line
    for part in re.split(r"[.\[\]]+", field.rstrip("]")):
        if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line
            continue
        found = [(k, v) for k, v in node.value if k.value == part] if isinstance(node, yaml.MappingNode) else []
        if not found:
            break
        key, node = found[0]
        line = key.start_mark.line
    return line + 1


def documents(path: Path) -> list[Document]:
    """The YAML documents of a file.  Raises ConfigError, with line and column if the error has them."""
    text, found = _text(path), []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is not None and _expanded(node, {}) > MAX_NODES:
                raise yaml.YAMLError(f"aliases make more than {MAX_NODES:,} values of it")
            if node is not None and (content := loader.construct_document(node)):
                found.append(Document(path, node, content))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        hint = "indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{place}: not YAML: {error.problem}", hint=hint) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {first_line(error)}") from None
    if not found:
        raise ConfigError(
            f"{path}: no YAML document in it", hint="examples/pretrain-tiny.yaml is a small job to start from"
        )
    return found


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """How many nodes there are once each alias is written out; infinitely many where one holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_expanded(each, known) for each in inner)
    return known[id(node)]


def _text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory", hint=f"name the files: {path}/*.yaml")
    try:
        return _content(path).decode()
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"YAML files there: {', '.join(near[:5])}" if near else f"no YAML file in {path.parent.absolute()}"
        raise ConfigError(f"{path}: no such file", hint=hint) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None


def _content(path: Path) -> bytes:
    if path.parent not in PIPES:
        return content_of(path, max_bytes=MAX_BYTES)
    with path.open("rb") as pipe:
        content = pipe.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES:,} bytes", hint="see whether it is the file that it should be")
    return content


def problems(document: Document) -> list[str]:
    """Everything that is wrong with a job or a profile, a line each.  Empty if the API server would accept it."""
    return [document.at(message) for message in messages(document.content)]


@dataclass(frozen=True, slots=True)
class Job:
    """A checked job, as its file states it."""

    path: Path
    manifest: Manifest
    spec: JobSpec
    profiles: Mapping[str, Manifest]

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.manifest["metadata"].get("namespace", "default"))


def load_job(path: Path, *more: Path) -> Job:
    """The one job of a file.  Profiles may be in the same file or in `more` files.

    Raises an ExceptionGroup of ConfigError, one for each problem.
    """
    ours = [document for file in (path, *more) for document in documents(file) if document.is_ours]
    if wrong := [problem for document in ours for problem in problems(document)]:
        raise ExceptionGroup("job file", [ConfigError(problem) for problem in wrong])
    jobs = [document for document in ours if document.kind == KIND and document.path == path]
    if len(jobs) != 1:
        names = ", ".join(job.content["metadata"]["name"] for job in jobs)
        hint = "put each job in a file of its own" if jobs else f"a job is a document with kind: {KIND}"
        raise ConfigError(f"{path}: holds {len(jobs)} jobs{f' ({names})' if jobs else ''}, must be one", hint=hint)
    profiles = _profiles(ours)
    if mismatch := _mismatch(jobs[0], profiles):
        raise ConfigError(mismatch)
    manifest = jobs[0].content
    return Job(path, manifest, JobSpec.model_validate(manifest["spec"]), profiles)


@dataclass(frozen=True, slots=True)
class Checked:
    """The jobs and profiles of a file, and everything that is wrong with it."""

    path: Path
    documents: list[Document]
    errors: list[ConfigError]


def checked(paths: Iterable[Path]) -> Iterator[Checked]:
    """Check one file after the other.  A job is checked against the profiles of all files."""
    read = [_checked(path) for path in paths]
    profiles = _profiles(document for file in read if not file.errors for document in file.documents)
    for file in read:
        valid = file.documents if not file.errors else []
        mismatches = [ConfigError(message) for each in valid if (message := _mismatch(each, profiles))]
        yield Checked(file.path, file.documents, file.errors + mismatches)


def _checked(path: Path) -> Checked:
    try:
        ours = [document for document in documents(path) if document.is_ours]
    except ConfigError as error:
        return Checked(path, [], [error])
    if not ours:
        hint = f"apiVersion: {API_VERSION}, kind: {KIND}"
        return Checked(path, [], [ConfigError(f"{path}: holds no {KIND} and no {PROFILE_KIND}", hint=hint)])
    return Checked(path, ours, [ConfigError(problem) for document in ours for problem in problems(document)])


def _profiles(valid: Iterable[Document]) -> dict[str, Manifest]:
    return {each.content["metadata"]["name"]: each.content for each in valid if each.kind == PROFILE_KIND}


def _mismatch(document: Document, profiles: Mapping[str, Manifest]) -> str | None:
    """Why a valid job cannot run with its profile; None if it can, if `profiles` lacks it, or for a profile."""
    if document.kind != KIND:
        return None
    spec = JobSpec.model_validate(document.content["spec"])
    profile = profiles.get(spec.trainer.profile or "")
    message = profile and profile_mismatch(spec, ProfileSpec.model_validate(profile["spec"]))
    return document.at(message) if message else None
