"""A job's records, by split and by source or class."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Final, Generic, Self

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.classes import Classes, unbalanced
from deepseek_trainer.data.reading import R, Reading
from deepseek_trainer.data.sources import Skipped, Source, Split, unheard

TRAIN: Final = "train"
VALIDATION: Final = "validation"
SPLITS: Final = (TRAIN, VALIDATION)
VALIDATION_FRACTION: Final = 0.05


@dataclass(frozen=True, slots=True)
class Inputs(Generic[R]):
    """The records of both splits.

    Validation has a place of its own, is held out of training by record hash, or with a fraction of 0 has no record.
    """

    train: Mapping[str, Source[R]]  # by name; `data.train` has an empty one
    validation: Source[R] | None
    split: Split | None
    classes: Classes | None = None  # of the training records, with data.balanceBy

    @classmethod
    def find(
        cls, config: TrainingConfig, paths: Paths, reading: Callable[[DataSpec], Reading[R]], most: int | None = None
    ) -> Self:
        """Raises DataError for bad places and files.  Holding out reads all records, and raises for bad ones, too."""
        spec, plain = config.data, unbalanced(config.data)
        found = partial(Source.find, paths=paths, is_private=config.is_private, most=most)
        train = {name: found(place, spec, reading=reading(spec)) for name, place in spec.training_places.items()}
        validation = found(spec.validation, plain, reading=reading(plain)) if spec.validation else None
        split = None
        if validation is None and spec.validation_fraction != 0:
            records = chain.from_iterable(source.records() for source in train.values())
            split = Split.of(records, spec.validation_fraction or VALIDATION_FRACTION)
        classes = Classes.of(train[""], split) if spec.balance_by else None
        return cls(train, validation, split, classes)

    def names(self, split: str) -> tuple[str, ...]:
        """The sources or classes that are packed by themselves.  Validation is packed as one, if there is any."""
        if split != TRAIN:
            return ("",) if self.validation or self.split else ()
        return tuple(self.classes.places if self.classes else self.train)

    def place(self, split: str, name: str) -> str:
        """What messages call a source or class: a class is private, so they name the place of its first record."""
        if not name:
            return split
        return f"balanceBy[class of {self.classes.places[name]}]" if self.classes else f"sources[{name}]"

    def records(self, split: str, name: str = "", skipped: Skipped = unheard) -> Iterator[R]:
        """The records of one split: those of the source or class `name`, or all in turn if it is empty.

        Reports bad records that are left out to `skipped`; if both splits read one source, only for train.
        """
        if split == VALIDATION and self.validation is not None:
            return self.validation.records(skipped)
        if name and self.classes is not None:
            return self.train[""].records(skipped, self.classes.entries(name))
        held_out = split == VALIDATION
        if held_out and self.split is None:
            return iter(())
        heard = unheard if held_out else skipped
        sources = (self.train[name],) if name else self.train.values()
        records = chain.from_iterable(source.records(heard) for source in sources)
        if self.split is None:
            return records
        return (record for record in records if self.split.holds_out(record) is held_out)

    def fills_rows(self, split: str) -> bool:
        """Whether the few records of a rare class are repeated until they fill a row."""
        return split == TRAIN and self.classes is not None

    def sample(self, enough: int) -> Iterator[R]:
        """Every n-th training record: about `enough` bytes, if there are that many."""
        return islice(self.records(TRAIN), 0, None, self.every(enough))

    def every(self, enough: int) -> int:
        """The n whose every n-th training record makes about `enough` bytes."""
        return 1 + sum(source.size_bytes() for source in self.train.values()) // enough
