"""`dstj data preview`: what a job will learn of its records, as preparation reads and tokenises them."""

import random
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from deepseek_trainer import tasks
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_of, plainly
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode, Paths
from dstj.commands import forecast
from dstj.jobfile import load_job
from dstj.local.claims import claims_at_hand
from dstj.local.home import Home
from dstj.screen import learned
from dstj.screen.table import lines

if TYPE_CHECKING:
    from deepseek_trainer.data.inputs import Inputs
    from deepseek_trainer.data.sources import Source
    from deepseek_trainer.tasks.language.packing import Document
    from deepseek_trainer.tasks.language.preparation import LanguagePreparer
    from deepseek_trainer.tasks.language.records import Record

    Numbered = tuple[int, Record]

_SEED: Final = 0
_BAR: Final = 40  # [characters]
_FIELDS: Final = 20  # names of fields that are shown
_NAME: Final = 60  # [characters] of one


@dataclass(slots=True)
class Fields:
    """In how many records each field is used, and unused."""

    used: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)

    def heard(self, source: "Source[Record]") -> "Source[Record]":
        """The same source, which counts the fields that it meets."""
        reading = source.reading

        def record(value: dict[str, Any], name: str, line: int) -> "Record | None":
            found = reading.record(value, name, line)
            if found is not None:
                self.unused.update(found.unused)
                self.used.update(name for name in value if value[name] is not None and name not in found.unused)
            return found

        return replace(source, reading=replace(reading, record=record))


def preview(arguments: Namespace) -> int:
    """Print a few records as they will be learned, and counts of all of them."""
    job = load_job(Path(arguments.file))
    config = job.spec.training_config(job.namespace, job.name)
    if config.data.images is not None:
        raise ConfigError("pictures have no tokens to show", hint="dstj data preview is for records of texts")
    with forecast.mounted(claims_at_hand(job, Home.from_env(), arguments.volume)) as paths:
        try:
            _preview(config, paths, arguments.records)
        except ModuleNotFoundError as error:
            raise ConfigError(f"data cannot be read without {error.name}", hint=forecast.INSTALL) from None
    return ExitCode.DONE


def _preview(config: TrainingConfig, paths: Paths, most: int) -> None:
    preparer, fields = cast("LanguagePreparer", tasks.preparer(config)), Fields()
    inputs = preparer.inputs(paths)
    preparer.refuse(inputs)
    say(f"These are {most} of your records at most, which may be private: mind where this output goes.")
    every = inputs.every(forecast.SAMPLE_BYTES)
    heard = replace(inputs, train={name: fields.heard(source) for name, source in inputs.train.items()})
    found = _chosen(_sample(heard, every), most)
    _say_fields(fields, preparer.config.data)
    source = forecast.base_of(config, paths) if config.model.base else None
    preparer.learn(inputs, source, forecast.SAMPLE_BYTES)
    for why, record in found:
        _show(why, record, preparer)
    _say_counts(preparer, inputs, every)
    _say_lengths(preparer, _sample(inputs, every))


def _sample(inputs: "Inputs[Record]", every: int) -> "Iterator[Record]":
    from deepseek_trainer.data.inputs import TRAIN

    return islice(inputs.records(TRAIN), 0, None, every)


def _chosen(records: "Iterator[Record]", most: int) -> "list[tuple[str, Record]]":
    """The first, the longest and random others, at most `most` in all, each once."""
    first: list[Numbered] = []
    longest: list[Numbered] = []
    others: list[Numbered] = []
    draws = random.Random(_SEED)  # noqa: S311 not for secrets: the same data show the same records
    for i, record in enumerate(records):
        first = first or [(i, record)]
        if not longest or record.size_bytes() > longest[0][1].size_bytes():
            longest = [(i, record)]
        if len(others) < most:
            others.append((i, record))
        elif (at := draws.randrange(i + 1)) < most:
            others[at] = i, record
    kept: dict[int, tuple[str, Record]] = {}
    for why, found in (("first", first), ("longest", longest), ("random", others)):
        for number, record in found:
            kept.setdefault(number, (why, record))
    return list(kept.values())[:most]


def _say_fields(fields: Fields, spec: DataSpec) -> None:
    for what, names in (("used", fields.used), ("unused", fields.unused)):
        shown = [f"{plainly(name, _NAME)} ({count})" for name, count in names.most_common()]
        say(f"fields {what} for data.format {spec.format}: {first_of(shown, _FIELDS, str) or 'none'}")


def _documents(preparer: "LanguagePreparer", records: "Iterator[Record]") -> "Iterator[Document]":
    from deepseek_trainer.tasks.language.row_maker import documents_of

    return chain.from_iterable(documents_of(preparer.config.data, preparer.tokenizer, records))


def _show(why: str, record: "Record", preparer: "LanguagePreparer") -> None:
    found = list(_documents(preparer, iter([record])))
    tokens, targets = sum(map(len, found)), sum(each.num_targets for each in found)
    say()
    say(f"{why}: {record.place}, {tokens:,} tokens, {targets:,} learned{_fate(record, preparer)}")
    for document in found:
        learned.show(_pieces(document, preparer.tokenizer))


def _pieces(document: "Document", tokenizer: Any) -> Iterator[learned.Piece]:
    flags = [False, *document.learned[1:].tolist()]  # nothing comes before the first token, so it is never learned
    for is_learned, group in groupby(zip(flags, document.tokens.tolist(), strict=True), key=lambda each: each[0]):
        ids = [token for _, token in group]
        yield tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), is_learned


def _fate(record: "Record", preparer: "LanguagePreparer") -> str:
    """What is lost of a record, as the rows show that are made of it alone."""
    from deepseek_trainer.tasks.language.row_maker import losses

    maker = preparer.maker("preview", fills_row=False)
    rows = sum(1 for _ in maker.rows([record]))
    lost = [f"; {what}" for what, _ in losses(maker.tally.counts(), preparer.config.data)]
    return "".join(lost) or (f"; in {rows} rows" if rows > 1 else "")


def _say_counts(preparer: "LanguagePreparer", inputs: "Inputs[Record]", every: int) -> None:
    """Made as preparation makes rows."""
    from deepseek_trainer.data.inputs import TRAIN

    say()
    for name in inputs.names(TRAIN):
        place = inputs.place(TRAIN, name)
        maker = preparer.maker(place, fills_row=inputs.fills_rows(TRAIN))
        records = inputs.records(TRAIN, name, maker.tally.skip)
        for _ in maker.rows(islice(records, 0, None, every)):
            pass
        numbers = ", ".join(f"{key} {count:,}" for key, count in maker.tally.counts().to_json().items())
        say(f"{place}: {numbers}{f' (of every {every}th record)' if every > 1 else ''}")


def _say_lengths(preparer: "LanguagePreparer", records: "Iterator[Record]") -> None:
    lengths = Counter((len(document) - 1).bit_length() for document in _documents(preparer, records))
    say()
    for line in lines([("TOKENS", "DOCUMENTS", ""), *_bars(lengths)]):
        say(line)


def _bars(lengths: Counter[int]) -> Sequence[tuple[str, str, str]]:
    """One for each power of 2, up to which lengths count."""
    most = max(lengths.values(), default=1)
    span = range(min(lengths, default=0), max(lengths, default=-1) + 1)
    return [(f"up to {1 << power:,}", f"{lengths[power]:,}", "#" * (_BAR * lengths[power] // most)) for power in span]
