"""What preparation asks of a task: how its records become rows of one size.  Without torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.data.draws import RowArray
from deepseek_trainer.data.inputs import Inputs
from deepseek_trainer.data.reading import R, Reading, Record
from deepseek_trainer.data.shards import SplitCounts
from deepseek_trainer.data.tally import Tally
from deepseek_trainer.storage.vault import Vault

Json = dict[str, Any]
T = TypeVar("T", bound=Record, contravariant=True)  # noqa: PLC0105


class RowMaker(Protocol[T]):
    """Makes the rows of one source or class of a split."""

    @property
    def tally(self) -> Tally:
        """What becomes of the records."""

    def rows(self, records: Iterable[T]) -> Iterator[RowArray]:
        """Rows of the preparer's dtype, each of shape (1,)."""


class Preparer(ABC, Generic[R]):
    """Of one job.  `begin` comes before all that needs to know the records as a whole."""

    @abstractmethod
    def reading(self, spec: DataSpec) -> Reading[R]:
        """How files become records."""

    def refuse(self, inputs: Inputs[R]) -> None:
        """Raise DataError for records that are wrong beside each other, before the base model is copied."""

    @abstractmethod
    def shaping(self, model: Path | None, vault: Vault) -> Json:
        """What shapes rows beside the records and `spec.data`: part of the data's digest."""

    @abstractmethod
    def begin(self, inputs: Inputs[R], model: Path | None, directory: Path, vault: Vault) -> None:
        """Learn from the prepared base `model`, or from the records, what rows are made with."""

    @abstractmethod
    def learn(self, inputs: Inputs[R], source: Path | None, enough: int) -> None:
        """The same for a forecast: from a base as it lies on its claim, or from about `enough` bytes of records."""

    @property
    @abstractmethod
    def facts(self) -> Json:
        """What the manifest says of the rows.  The task's `dtype` follows from it."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[np.void]:
        """Of one row."""

    @abstractmethod
    def maker(self, place: str, *, fills_row: bool) -> RowMaker[R]:
        """Of one source or class, which messages call `place`; see `Inputs.fills_rows`."""

    @abstractmethod
    def difficulty(self, row: RowArray) -> float:
        """How hard a row of shape (1,) is, for data.curriculum."""

    @abstractmethod
    def finish(self, inputs: Inputs[R], directory: Path, vault: Vault) -> None:
        """Write what training needs beside the rows."""

    @abstractmethod
    def nothing_learned(self, place: str, counts: SplitCounts) -> DataError:
        """Of records that make no row at all."""
