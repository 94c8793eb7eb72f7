"""Classes of records that are drawn as often as each other, whatever their number.

Each class is packed apart, as a source is, and its share of the rows makes up for how many of its records go into one.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Final, NoReturn, Self

from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.mixture import BLOCK
from deepseek_trainer.data.order import slots_of
from deepseek_trainer.data.sources import Source, Split

MAX_CLASSES: Final = 1000
SLOTS: Final = 20  # of a class in a block, on average: rounding moves a share by less than a twentieth of that
_HELD_OUT: Final = MAX_CLASSES


@dataclass(frozen=True, slots=True)
class Classes:
    """What `data.balanceBy` says of the entries of a source: one pass tells where the records of each class are.

    `places` has each class in the order in which they first appear, and where that is.  An entry without a record
    counts for the first class, so that a bad one is told of once.
    """

    places: Mapping[str, str]
    numbers: "array[int]"  # of the class, by entry, up to the last record

    @classmethod
    def of(cls, source: Source[Any], split: Split | None) -> Self:
        """Raises DataError where there are too many classes, or only one, or one has all of its records held out."""
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
    """Slots of a block with which each class has as many records read; a row holds so many of each on average."""
    block = max(BLOCK, SLOTS * len(records_of_row))
    return slots_of([1 / records for records in records_of_row], [1] * len(records_of_row), block)


def unbalanced(spec: DataSpec) -> DataSpec:
    """For records that nobody balances, and that need not tell their class."""
    return spec.model_copy(update={"balance_by": None})


def _refuse_many(field: str) -> NoReturn:
    raise DataError(
        f"data.balanceBy: field {field!r} has more than {MAX_CLASSES} different values: it holds no class",
        hint="name the field that holds a record's class; of Instruction data it may be data.responseField",
    )


def _refuse_few(places: Mapping[str, str], held_out: Mapping[str, str], field: str) -> None:
    if lost := [place for label, place in held_out.items() if label not in places]:
        raise DataError(
            f"data.balanceBy: of {len(lost)} classes every record is held out; the first is that of {lost[0]}",
            hint="add records of these classes, lower data.validationFraction, or give data.validation",
        )
    if len(places) < 2:
        raise DataError(
            f"data.balanceBy: training records have {len(places)} classes in field {field!r}: balancing takes two",
            hint="drop data.balanceBy, or name another field",
        )
