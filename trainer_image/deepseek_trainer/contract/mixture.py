"""Which rows a run draws: the shares of several sources, and the order of the first epoch."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from deepseek_trainer.contract.rules import Model
from deepseek_trainer.contract.volume import VolumePath

BLOCK: Final = 1000  # rows in which every source has the same number of slots: shares are whole thousandths
ROUND_UP: Final = 0.999999  # not 1, since 0.07 * 1000 is a little more than 70


class MixSource(VolumePath):
    """One of several places of training records.  A row holds records of one source."""

    name: Annotated[
        str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63, description="Name in logs and results.")
    ]
    weight: Annotated[
        float, Field(gt=0, le=1000000, description="Share of the rows, relative to the other sources' weights.")
    ] = 1.0
    minimum_share: Annotated[
        float | None,
        Field(gt=0, lt=1, description="At least this share of the rows; the other sources share the rest by weight."),
    ] = None

    @property
    def minimum_slots(self) -> int:
        """The least number of slots in a block: the minimum share, rounded up, and at least one."""
        return max(1, int((self.minimum_share or 0.0) * BLOCK + ROUND_UP))


class Difficulty(StrEnum):
    LENGTH = "Length"


class Curriculum(Model):
    """The first epoch in order of difficulty, bucket by bucket; later epochs are shuffled as a whole."""

    by: Annotated[
        Difficulty, Field(description="Length: rows whose records have few tokens on average come first.")
    ] = Difficulty.LENGTH
    buckets: Annotated[
        int, Field(ge=2, le=1000, description="Steps of difficulty, of as many rows each, shuffled inside.")
    ] = 10
