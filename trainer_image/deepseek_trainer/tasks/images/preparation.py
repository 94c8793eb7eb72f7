"""How pictures become rows: decoded once, so that no GPU waits for it in any epoch."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from deepseek_trainer.base_model.place import Place
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import BadRecord, DataSpec
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.images import ImagesSpec
from deepseek_trainer.data.draws import RowArray
from deepseek_trainer.data.inputs import TRAIN, VALIDATION, Inputs
from deepseek_trainer.data.preparer import Json, Preparer
from deepseek_trainer.data.reading import Reading
from deepseek_trainer.data.shards import SplitCounts
from deepseek_trainer.data.tally import Tally
from deepseek_trainer.storage.vault import Vault
from deepseek_trainer.tasks.images.normalisation import Normalisation
from deepseek_trainer.tasks.images.records import Picture, reading

CLASSES: Final = "classes.json"  # their names, in order
MAX_CLASSES: Final = 1000
FORMAT: Final = "images/1"  # of decoding and resizing: another one makes other rows


@dataclass(slots=True)
class ImagePreparer(Preparer[Picture]):
    """Pictures with a class each."""

    config: TrainingConfig
    classes: tuple[str, ...] = field(init=False, default=())

    def reading(self, spec: DataSpec) -> Reading[Picture]:
        return reading(spec)

    def refuse(self, inputs: Inputs[Picture]) -> None:
        """Where there are no two classes, or a held-out picture is of a class that is never seen while training."""
        self.classes = tuple(sorted({picture.label for picture in inputs.records(TRAIN)}))
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise DataError(
                f"data.train has {len(self.classes)} classes: 2 to {MAX_CLASSES} can be told apart",
                hint="check the folders below data.train.path, or data.images.labelField",
            )
        unknown = [picture for picture in inputs.records(VALIDATION) if picture.label not in self.classes]
        if unknown:
            raise DataError(
                f"{len(unknown)} held-out pictures are of a class that training never sees; the first is "
                f"{unknown[0].place}",
                hint="add pictures of it to data.train, lower data.validationFraction, or give data.validation",
            )

    def shaping(self, model: Path | None, vault: Vault) -> Json:  # noqa: ARG002  a base shapes no row
        return {"images": [FORMAT, self.images.model_dump(mode="json", exclude={"augmentation"})]}

    def begin(self, inputs: Inputs[Picture], model: Path | None, directory: Path, vault: Vault) -> None:  # noqa: ARG002
        """Look at how the base takes pixels, before a GPU waits for that; `refuse` has learned the classes."""
        if model is not None:
            Normalisation.of_base(model, vault, self.images.channels)

    def learn(self, inputs: Inputs[Picture], source: Place | None, enough: int) -> None:  # noqa: ARG002
        self.refuse(inputs)

    @property
    def facts(self) -> Json:
        return {"height": self.images.height, "width": self.images.width, "channels": self.images.channels}

    @property
    def dtype(self) -> np.dtype[np.void]:
        return dtype_of(self.facts)

    @property
    def images(self) -> ImagesSpec:
        assert self.config.data.images is not None, "the spec asks for images with format Images"
        return self.config.data.images

    def maker(self, place: str, *, fills_row: bool) -> "RowMaker":  # noqa: ARG002  a picture is a row
        return RowMaker(place, self.config, self.classes, self.facts)

    def difficulty(self, row: RowArray) -> float:  # noqa: ARG002
        """All are of one size, and as hard as each other."""
        return 0.0

    def finish(self, inputs: Inputs[Picture], directory: Path, vault: Vault) -> None:  # noqa: ARG002
        vault.write(directory / CLASSES, json_text(self.classes, ensure_ascii=False).encode())

    def nothing_learned(self, place: str, counts: SplitCounts) -> DataError:
        return DataError(f"data.{place} has no picture that can be decoded, of {counts.records}")


class RowMaker:
    """Decodes the pictures of one source or class."""

    def __init__(self, place: str, config: TrainingConfig, classes: Sequence[str], facts: Json) -> None:
        spec, self._is_private = config.data, config.is_private
        assert spec.images is not None, "the spec asks for images with format Images"
        self._images, self._skips, self._dtype = spec.images, spec.on_bad_record is BadRecord.SKIP, dtype_of(facts)
        self._numbers = {name: number for number, name in enumerate(classes)}
        self.tally = Tally(place, Counter())

    def rows(self, records: Iterable[Picture]) -> Iterator[RowArray]:
        """Rows of `dtype_of`.  A bad picture raises DataError, or is left out and tallied, as the job wants."""
        for picture in self.tally.counted(self._decoded(records)):
            row = np.empty(1, self._dtype)
            row["pixels"], row["label"] = picture.pixels, self._numbers[picture.label]
            self.tally.rows += 1
            yield row

    def _decoded(self, records: Iterable[Picture]) -> Iterator[Picture]:
        first: DataError | None = None
        for picture in records:
            try:
                good = picture.decoded(self._images)
            except DataError as bare:
                error = bare if self._is_private else bare.in_full()
                if not self._skips:
                    raise error from None
                self.tally.skip(error)
                first = first or error
                continue
            yield good
        if first is not None and not self.tally.rows:
            raise DataError(
                f"no picture is left: all were bad and skipped, the first: {first.problem}", hint=first.hint
            )


def dtype_of(facts: Mapping[str, int]) -> np.dtype[np.void]:
    """Of a row, by what the manifest says."""
    shape = (facts["height"], facts["width"], facts["channels"])
    return np.dtype([("pixels", np.uint8, shape), ("label", "<u4")])


def read_classes(directory: Path, vault: Vault) -> tuple[str, ...]:
    """Their names, by number."""
    return vault.document(directory / CLASSES, _classes)


def _classes(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError
    return tuple(names)
