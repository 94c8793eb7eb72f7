"""What a run found out about itself that people must know, in the same words everywhere.

Trainer, operator and `dstj` make them from the same numbers: conditions of the status, lines on a terminal, rows of the
model card and of the report.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.progress import MOST_NAMES, Progress, RecordCounts

_MEASURED: Final = frozenset({"exporting", "done"})  # the stages of a run that has measured its result, if ever


class FindingType(StrEnum):
    IMPROVED = "Improved"
    STOPPED_EARLY = "StoppedEarly"
    DATA_COMPLETE = "DataComplete"
    BATCH_FITS = "BatchFits"


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them, in the shape of a condition."""

    type: FindingType
    status: str  # "True", "False", "Unknown"
    reason: str
    message: str

    @property
    def is_notable(self) -> bool:
        return is_notable(self.type, self.status)


def is_notable(type_: FindingType, status: str) -> bool:
    """Whether a person should hear of such a finding unasked."""
    return status == ("True" if type_ is FindingType.STOPPED_EARLY else "False")


def findings(progress: Progress) -> Iterator[Finding]:
    """What the progress of a run tells, in the order in which it happened."""
    if progress.records is not None:
        yield completeness(progress.records)
        if progress.records.batch > progress.records.rows > 0:
            yield repetition(progress.records.batch, progress.records.rows)
    if progress.stale_evaluations is not None and progress.step is not None:
        yield early_stop(progress.step, progress.max_steps, progress.stale_evaluations)
    if progress.final_eval_loss is not None or progress.stage in _MEASURED:
        yield improvement(progress.initial_eval_loss, progress.final_eval_loss)


def improvement(before: float | None, after: float | None) -> Finding:
    """Whether the held-out loss of the result is below that of the model before training."""
    if before is None or after is None:
        return Finding(FindingType.IMPROVED, "Unknown", "NotMeasured", "no held-out loss was measured")
    if after == before:
        text = f"held-out loss stayed at {before:.4g}: training changed nothing that it measures"
        return Finding(FindingType.IMPROVED, "False", "LossUnchanged", text)
    way = f"from {_apart(before, after)} to {_apart(after, before)}"
    if after < before:
        return Finding(FindingType.IMPROVED, "True", "LossFell", f"held-out loss fell {way}")
    text = f"held-out loss rose {way}: the model is worse than before training; lower optimization.learningRate first"
    return Finding(FindingType.IMPROVED, "False", "LossRose", text)


def _apart(value: float, other: float) -> str:
    """`value` in so many digits that it differs from `other`."""
    return next((text for digits in range(4, 17) if (text := f"{value:.{digits}g}") != f"{other:.{digits}g}"), "")


def early_stop(step: int, max_steps: int | None, evaluations: int) -> Finding:
    of = "" if max_steps is None else f" of {max_steps}"
    times = f"{evaluations} evaluation{'s' if evaluations > 1 else ''}"
    text = f"stopped at step {step}{of}: validation loss has not fallen for {times}"
    return Finding(FindingType.STOPPED_EARLY, "True", "LossStalled", text)


def completeness(records: RecordCounts) -> Finding:
    """Whether every record, and every field of it, is trained on or held out as it is."""
    left_out = list(_left_out(records))
    if not left_out:
        return Finding(FindingType.DATA_COMPLETE, "True", "AllUsed", f"all {records.records} records are used")
    reason = "FieldsUnused" if len(left_out) == 1 and records.unused_fields else "RecordsLeftOut"
    return Finding(FindingType.DATA_COMPLETE, "False", reason, f"of {records.records} records {', '.join(left_out)}")


def repetition(batch: int, rows: int) -> Finding:
    """A step takes more rows than there are, so it trains on some of them more than once."""
    text = f"optimization.globalBatchSize {batch} is more than the {rows} training rows: each step trains on a row "
    return Finding(FindingType.BATCH_FITS, "False", "RowsRepeated", f"{text}{batch / rows:.1f} times")


def _left_out(records: RecordCounts) -> Iterator[str]:
    if records.dropped:
        yield f"{records.dropped} dropped (nothing to learn is left within data.sequenceLength)"
    if records.cut:
        yield f"{records.cut} cut (at data.sequenceLength)"
    if records.skipped:
        yield f"{records.skipped} skipped (bad)"
    if records.unused_fields:
        known = records.unused or {}
        named = [f"{shown(name)} ({count})" for name, count in list(known.items())[:MOST_NAMES]]
        more = records.unused_fields - len(named)
        if named and more:
            named.append(f"{more} more")
        yield f"fields not used: {', '.join(named)}" if named else f"{more} fields not used"
