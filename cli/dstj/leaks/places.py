"""What of a sealed job is in the clear on purpose: where it lies, what it is, and why it may be read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from dstj.leaks.signs import BOARD, EVENTS, GZIP, JSON, KEYRING, TEXT

ANYTHING: Final = frozenset[str]()


@dataclass(frozen=True, slots=True)
class Allowed:
    """Files that may be in the clear.  `*` stands for any name, and `**` at the end for anything below."""

    glob: str
    kinds: frozenset[str]  # as `signs.kind_of` calls them; ANYTHING for no matter which
    why: str

    def holds(self, name: str) -> bool:
        """Whether the file `name`, as seen from the directory that is looked at, is one of them."""
        wanted, parts = self.glob.split("/"), name.split("/")
        if wanted[-1] == "**":
            wanted, parts = wanted[:-1], parts[: len(wanted) - 1]
        return len(wanted) == len(parts) and all(map(fnmatchcase, parts, wanted))

    def may_be(self, kind: str | None) -> bool:
        return not self.kinds or kind in self.kinds


_ANY_TEXT: Final = frozenset({TEXT, JSON, EVENTS})
_A_NUMBER = "the trainer's own numbers: process ids, counts of starts"

VOLUME: Final = (
    Allowed("keyring.json", frozenset({KEYRING}), "data keys, wrapped by a key that is not on the volume"),
    Allowed("keyring.json.partial-*", frozenset({KEYRING}), "the same, left by a rotation that was cut off"),
    Allowed("logs/events.jsonl", frozenset({EVENTS}), "losses, counts and times of the run, no sample"),
    Allowed("logs/tensorboard/events.out.tfevents.*", frozenset({BOARD}), "the same numbers for TensorBoard"),
)

VOLUME_OTHERS: Final = (Allowed("lost+found", ANYTHING, "the file system's own"),)

# Of a local job, beside its work volume.
HOME: Final = (
    Allowed("status.yaml", _ANY_TEXT, "the job's file and status: names, settings, progress"),
    Allowed("status.new", _ANY_TEXT, "the same, left by a crash"),
    Allowed("lock", _ANY_TEXT, "the process that runs the job"),
    Allowed("etc/dstj/*", _ANY_TEXT, "the job's settings, as its pods read them"),
    Allowed("run/dstj/keys/vault-transit.json", frozenset({JSON}), "which key server the job asks, and as whom"),
    Allowed("logs/*/*.log", _ANY_TEXT, "what the pods printed: numbers, names, places"),
    Allowed("logs/*/*.termination", _ANY_TEXT, "the pods' last words: progress, or why they failed"),
    Allowed("tmp/*/ranks/*", _ANY_TEXT, _A_NUMBER),
    Allowed("tmp/*/starts-*", _ANY_TEXT, _A_NUMBER),
    Allowed("tmp/*/rungs", _ANY_TEXT, _A_NUMBER),
    Allowed("tmp/*/stopped", _ANY_TEXT, _A_NUMBER),
    Allowed("tmp/*/failure.json", _ANY_TEXT, "why a rank failed"),
    Allowed("tmp/*/progress.json", _ANY_TEXT, "the last progress of a run that was cut off"),
    Allowed("tmp/*/torchelastic_*/**", _ANY_TEXT, "torchrun's notes on how ranks ended"),
    Allowed("tmp/*/torchinductor_*/**", ANYTHING, "compiled code: operations and shapes"),
    Allowed("tmp/*/profile-rank-*.json.gz", frozenset({GZIP}), "operations, times and shapes of a trace asked for"),
)
HOME_OTHERS: Final = (
    Allowed("volumes/*", ANYTHING, "link to a claim that the job reads and never writes"),
    Allowed("run/dstj/keys", ANYTHING, "link to the key, which lies outside of the job"),
    Allowed("run/dstj/keys/*", ANYTHING, "link to what a key server asks for, which lies outside of the job"),
)

BESIDE: Final = (Allowed("**", _ANY_TEXT, "named by --also"),)


def volume(*, data_sealed: bool = True, export_sealed: bool = True) -> Sequence[Allowed]:
    """What may be in the clear on the work volume of a job that seals its checkpoints."""
    data = Allowed("prepared/**", ANYTHING, "the job says data.sealed: false")
    export = Allowed("export/**", ANYTHING, "the job says export.sealed: false")
    return (*VOLUME, *(() if data_sealed else (data,)), *(() if export_sealed else (export,)))


def allowed(name: str, rules: Iterable[Allowed]) -> Allowed | None:
    """The rule by which `name` may be in the clear; None if it may not."""
    return next((rule for rule in rules if rule.holds(name)), None)
