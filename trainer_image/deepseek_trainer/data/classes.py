"""Balances classes: equally many records of each class are read, however many it has.

Each class is packed by itself, like a source.  Its share of the rows makes up for how many of its records fit into one.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Final, NoReturn, Self

from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.mixture import BLOCK
from deepseek_trainer.data.order import slots_of
from deepseek_trainer.data.sources import Source, Split

MAX_CLASSES: Final = 1000
# The slots of a class in a block are at least so many on average: rounding moves a share by less than 1/20 of the mean.
MEAN_SLOTS: Final = 20
_HELD_OUT: Final = MAX_CLASSES  # in place of the number of a class


@dataclass(frozen=True, slots=True)
class Classes:
    """The class of each entry of a source, by `data.balanceBy`.

    `places` has the classes in the order in which they first appear, each with the place of its first record.  An entry
    without a record counts for the first class, so that a bad one is reported once.
    """

    places: Mapping[str, str]
    numbers: "array[int]"  # each entry's class by its place in `places`, up to the last record

    @classmethod
    def of(cls, source: Source[Any], split: Split | None) -> Self:
        """Read the source once.  Raises DataError for too many classes, only one, or one with all records held out."""
        field, known = str(source.spec.balance_by), dict[str, int]()
        places, held_out = dict[str, str](), dict[str, str]()
        numbers = array("H")
        for entry, record in source.numbered():
            assert record.label is not None, "records of a balanced source have one"
            is_held_out = split is not None and split.holds_out(record)
            (held_out if is_held_out else places).setdefault(record.label, record.place)
            numbers.extend(repeat(0, entry - len(numbers)))
            numbers.append(_HELD_OUT if is_held_out else known.setdefault(record.label, len(known)))
            if len(places) > MAX_CLASSES:
                _refuse_many(field)
        _refuse_few(places, held_out, field)
        return cls(places, numbers)

    def entries(self, name: str) -> Iterator[bool]:
        """For each entry of the source, whether it is of the class `name`."""
        number = list(self.places).index(name)
        return chain((each == number for each in self.numbers), repeat(number == 0))


def equal_slots(records_of_row: Sequence[float]) -> tuple[int, ...]:
    """How many slots of a block each class gets, so that equally many records of each class are read.

    `records_of_row`: how many records of each class one of its rows holds, on average.
    """
    block = max(BLOCK, MEAN_SLOTS * len(records_of_row))
    return slots_of([1 / records for records in records_of_row], [1] * len(records_of_row), block)


def unbalanced(spec: DataSpec) -> DataSpec:
    """`spec` without balanceBy: for records that nobody balances, and that need no class."""
    return spec.model_copy(update={"balance_by": None})


def _refuse_many(field: str) -> NoReturn:
    raise DataError(
        f"data.balanceBy: field {shown(field)} has more than {MAX_CLASSES} different values: it holds no class",
        hint="name the field that holds a record's class; of Instruction data it may be data.responseField",
    )


def _refuse_few(places: Mapping[str, str], held_out: Mapping[str, str], field: str) -> None:
    if lost := [place for label, place in held_out.items() if label not in places]:
        raise DataError(
            f"data.balanceBy: every record of {len(lost)} classes is held out; the first is that of {lost[0]}",
            hint="add records of these classes, lower data.validationFraction, or give data.validation",
        )
    if len(places) < 2:
        raise DataError(
            f"data.balanceBy: training records have {len(places)} classes in field {shown(field)}: balancing needs two",
            hint="drop data.balanceBy, or name another field",
        )
