"""What preparation asks of a task: how its records become rows of one size.  Without torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from deepseek_trainer.base_model.place import Place
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.names import Paths
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
        """Counts what becomes of the records."""

    def rows(self, records: Iterable[T]) -> Iterator[RowArray]:
        """Rows of the preparer's dtype, each of shape (1,)."""


class Preparer(ABC, Generic[R]):
    """Makes the rows of one job.

    `inputs`, `refuse` and `shaping` are called first.  The other methods need what `begin` or `learn` has found out.
    """

    config: TrainingConfig

    def inputs(self, paths: Paths, most: int | None = None) -> Inputs[R]:
        """The records of both splits, or the first `most` of each place.  Raises DataError for bad places and files."""
        return Inputs.find(self.config, paths, self.reading, most)

    @abstractmethod
    def reading(self, spec: DataSpec) -> Reading[R]:
        """How files become records."""

    def refuse(self, inputs: Inputs[R]) -> None:
        """Raise DataError for records that do not fit the job, or each other, before the base model is copied."""

    @abstractmethod
    def shaping(self, model: Path | None, vault: Vault) -> Json:
        """What shapes rows beside the records and the settings in `data`; it becomes part of the data's digest."""

    @abstractmethod
    def begin(self, inputs: Inputs[R], model: Path | None, directory: Path, vault: Vault) -> None:
        """Get what rows are made with, such as a tokenizer, from the prepared base `model`, or from the records."""

    @abstractmethod
    def learn(self, inputs: Inputs[R], source: Place | None, enough: int) -> None:
        """As `begin`, for a forecast: from the base model at `source`, or from about `enough` bytes of records."""

    @property
    @abstractmethod
    def facts(self) -> Json:
        """What the manifest says about the rows.  The task's `dtype` follows from it."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[np.void]:
        """The dtype of one row."""

    @abstractmethod
    def maker(self, place: str, *, fills_row: bool) -> RowMaker[R]:
        """What makes the rows of one source or class, which messages call `place`; see `Inputs.fills_rows`."""

    @abstractmethod
    def difficulty(self, row: RowArray) -> float:
        """How hard a row of shape (1,) is, for data.curriculum."""

    @abstractmethod
    def finish(self, inputs: Inputs[R], directory: Path, vault: Vault) -> None:
        """Write what training needs beside the rows."""

    def lost(self, split: str, counts: SplitCounts) -> Iterator[tuple[str, str]]:
        """What people must know of records of which all or a part is not learned: how many and why; and the way out."""
        if counts.dropped:
            yield f"{split}: {counts.dropped} of {counts.records} records were dropped", ""

    @abstractmethod
    def nothing_learned(self, place: str, counts: SplitCounts) -> DataError:
        """The error for records that make no row at all."""
