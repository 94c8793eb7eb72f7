"""Checks what a job reads, base model and data, as its run would: by the trainer's own code, in the run's order.

Neither torch, nor a GPU, a cluster or a network is needed, and nothing is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from deepseek_trainer import tasks
from deepseek_trainer.base_model.digest import digest_of
from deepseek_trainer.base_model.families import read_dimensions
from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataFormat
from deepseek_trainer.contract.errors import DataError, IntegrityError
from deepseek_trainer.contract.foreign import first_of
from deepseek_trainer.contract.names import Paths
from dstj.screen.checks import Check, Warned

RECORDS: Final = 10_000  # of each place, unless all are looked at
SHOWN: Final = 10  # fields that are not used


@dataclass(slots=True)
class Examination:
    """Looks at the first records of each place, or at all.  A check is left out if one before it has failed."""

    config: TrainingConfig
    paths: Paths
    looks_at_all: bool
    preparer: Any = field(init=False)
    inputs: Any = field(init=False, default=None)
    source: Place | None = field(init=False, default=None)  # of a base that is good, like the next two
    settings: dict[str, Any] = field(init=False, default_factory=dict)
    beside: dict[str, bytes] | None = field(init=False, default=None)  # its other files
    is_whole: bool = field(init=False, default=True)  # whether there are no more records than were looked at
    findings: list[Warned] = field(init=False, default_factory=list)

    @property
    def most(self) -> int | None:
        """How many records of each place are looked at.  Which classes there are, only all of them can tell."""
        has_classes = self.config.data.images is not None or self.config.data.balance_by is not None
        return None if self.looks_at_all or has_classes else RECORDS

    def checks(self) -> Iterator[tuple[str, Check]]:
        yield "data", self._data
        if self.config.model.base is not None:
            yield "base", self._base
        if self.config.model.adapter is not None and self.beside is not None:
            yield "adapter", self._adapter
        if self.inputs is None:
            return
        yield "records", self._records
        if self.config.model.base is not None and self.beside is None:
            return
        if self.config.data.images is None:
            yield "tokenizer", self._tokenizer
            if self.preparer.tokenizer is None:
                return
        for split in ("train", "validation"):
            if self.inputs.names(split):
                yield "rows", lambda split=split: self._rows(split)  # type: ignore[misc]  # mypy sees no default
        for each in self.findings:
            yield "rows", lambda each=each: each  # type: ignore[misc]

    def _data(self) -> str:
        """Places, files and format.  Where records are held out for validation, a run reads them first, too."""
        self.preparer = tasks.preparer(self.config)
        inputs = self.preparer.inputs(self.paths, self.most)
        self.preparer.refuse(inputs)
        self.inputs = inputs
        found = self.preparer.config.data.format
        kind = f"{found}, which Auto recognised" if self.config.data.format is DataFormat.AUTO else found
        files = ", ".join(f"{name} {_files(len(source.files))}" for name, source in self._sources())
        return f"{files}; format {kind}"

    def _sources(self) -> Iterator[tuple[str, Any]]:
        for name, source in self.inputs.train.items():
            yield f"sources[{name}]" if name else "train", source
        if self.inputs.validation is not None:
            yield "validation", self.inputs.validation

    def _base(self) -> str:
        from deepseek_trainer.base_model.source import source_model

        base = self.config.model.base
        assert base is not None, "only the base of a job that has one is checked"
        with understood(self.paths.claim(base.claim_name, base.path)):
            source = Place.find(base, self.paths)
            settings, beside = source_model(source)
            refuse_misfit(self.config, settings)
            size = "" if self.config.data.images else f", {read_dimensions(settings).parameters:,} parameters"
            self._compare_digest(source.path)
            if self.looks_at_all and source.path.is_dir():
                self._refuse_non_finite(source)
        self.source, self.settings, self.beside = source, settings, beside
        compared = "" if base.sha256 is None else ", digest matches" if self.looks_at_all else ", digest: see --all"
        return f"{source.path}: {settings['model_type']}{size}{compared}"

    def _adapter(self) -> str:
        from deepseek_trainer.base_model.source import refuse_unfit_adapter

        asked = self.config.model.adapter
        assert self.source is not None, "an adapter has a base, which is good"
        assert asked is not None, "only the adapter of a job that has one is checked"
        added = Place.find(asked, self.paths, "model.adapter")
        refuse_unfit_adapter(self.source, added, self.settings)
        return f"{added.path}: fits the base"

    def _compare_digest(self, path: Path) -> None:
        base = self.config.model.base
        if not self.looks_at_all or base is None or base.sha256 is None or (actual := digest_of(path)) == base.sha256:
            return
        raise IntegrityError(f"{path}: SHA-256 is {actual}, the job says {base.sha256}", hint="get the right file")

    @staticmethod
    def _refuse_non_finite(source: Place) -> None:
        from deepseek_trainer.base_model.directory import checked_directory
        from deepseek_trainer.base_model.finite import refuse_non_finite_files

        settings, _, weights = checked_directory(source)
        refuse_non_finite_files(source, weights, settings)

    def _records(self) -> str | Warned:
        """How many there are, and which are bad: all are made of their files' fields."""
        counts, bad = dict[str, int](), list[DataError]()
        for name, source in self._sources():
            entries = [entry for entry, _ in source.numbered(bad.append)]
            counts[name] = len(entries)
            self.is_whole &= self.most is None or not entries or entries[-1] + 1 < self.most
        text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        if not self.is_whole:
            text += f" among the first {self.most:,} of each place: --all looks at all"
        return Warned(f"{text}; {len(bad):,} bad ones are skipped", f"the first: {bad[0]}") if bad else text

    def _tokenizer(self) -> str:
        from deepseek_trainer.base_model.tokenizer_files import tokenizer_from
        from deepseek_trainer.tasks.language.chat import with_template
        from deepseek_trainer.tasks.language.preparation import TOKENIZER_BYTES
        from deepseek_trainer.tasks.language.tokenizer import id_limit

        if self.beside is None:
            self.preparer.learn(self.inputs, None, TOKENIZER_BYTES)
            return f"{id_limit(self.preparer.tokenizer):,} tokens, trained on these records"
        own = self.config.model.chat_template
        self.preparer.tokenizer = with_template(tokenizer_from(self.beside), own)
        template = "the job's own" if own else "a" if self.preparer.tokenizer.chat_template else "no"
        return f"{id_limit(self.preparer.tokenizer):,} tokens, {template} chat template"

    def _rows(self, split: str) -> str:
        """What becomes of the records of a split, as preparation makes rows of them."""
        from deepseek_trainer.data.preparation import refuse_empty
        from deepseek_trainer.data.shards import total
        from deepseek_trainer.training.schedule import refuse_endless_warmup

        counts = []
        for name in self.inputs.names(split):
            place = self.inputs.place(split, name)
            maker = self.preparer.maker(place, fills_row=self.inputs.fills_rows(split))
            for _ in maker.rows(self.inputs.records(split, name)):
                pass
            counts.append(maker.tally.counts())
            refuse_empty(place, counts[-1], self.preparer)
        found = total(counts)
        self.findings += self._found(split, found)
        if split == "train" and self.is_whole:
            refuse_endless_warmup(self.config.optimization, found.rows)
        return f"{split}: {found.records:,} records fill {found.rows:,} rows"

    def _found(self, split: str, counts: Any) -> Iterator[Warned]:
        """What is not learned, or not used."""
        for what, way_out in self.preparer.lost(split, counts):
            yield Warned(what, way_out)
        if counts.unused:
            fields = [f"{name} ({records:,})" for name, records in counts.unused.items()]
            named = (
                f"{len(fields)}, whose names are private" if self.config.is_private else first_of(fields, SHOWN, str)
            )
            yield Warned(
                f"{split}: fields that are not used: {named}", "data.fields names what they are, if they matter"
            )


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"
