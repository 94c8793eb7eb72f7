"""Reports a run in every form that somebody reads: events, log lines, TensorBoard, /progress, /metrics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepseek_trainer.budget.perf import Yardstick
from deepseek_trainer.contract.findings import Finding, FindingType, early_stop, findings, improvement
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.progress import RecordCounts
from deepseek_trainer.telemetry.events import Event, EventLog, log, log_line, snake
from deepseek_trainer.telemetry.meter import Ranks
from deepseek_trainer.telemetry.progress import Progress

if TYPE_CHECKING:
    from deepseek_trainer.checkpoints.saver import Saved
    from deepseek_trainer.evaluation.evaluate import EvalResult

# The events of findings that people should hear of.
NOTABLE = {
    FindingType.DATA_COMPLETE: "records_left_out",
    FindingType.BATCH_FITS: "rows_repeated",
    FindingType.STOPPED_EARLY: "stopped_early",
    FindingType.IMPROVED: "not_improved",
}


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step, over all ranks."""

    step: int  # 1 after the first
    max_steps: int
    epoch: float
    rows: int
    # Mean over the learned tokens or pairs, before the update [nats/token, nats/pair]; None if this step is not logged.
    loss: float | None
    grad_norm: float  # before clipping
    learning_rate: float
    ranks: Ranks | None = None  # their measures, where there is a loss


@dataclass(slots=True)
class Work:
    """The work done since the last log line."""

    steps: int = 0
    rows: int = 0
    size: int = 0  # in the task's unit
    seconds: float = 0.0

    def add(self, rows: int, size: int, seconds: float) -> None:
        self.steps, self.rows = self.steps + 1, self.rows + rows
        self.size, self.seconds = self.size + size, self.seconds + seconds

    def speed(self, unit: str, yardstick: Yardstick | None) -> dict[str, float]:
        units, rows = self.size / self.seconds, self.rows / self.seconds
        speed = {f"{unit}PerSecond": round(units, 1), "samplesPerSecond": round(rows, 3)}
        if yardstick is not None:
            speed |= {"mfu": round(yardstick.mfu(units), 4), "hfu": round(yardstick.hfu(rows), 4)}
        return speed

    def of_ranks(self, ranks: Ranks) -> dict[str, float]:
        """The measures of the worst rank, for which the others wait."""
        facts = {
            "dataWaitShare": round(max(ranks.waited) / self.seconds, 6),
            "peakMemoryBytes": int(max(ranks.memory)),
        }
        if ranks.skew is not None and ranks.slowest is not None:
            facts |= {"rankSkew": round(ranks.skew, 3), "slowestRank": ranks.slowest}
        return facts


class Reporter:
    """Reports for the lead rank.  The other ranks have a `Silent` one."""

    def __init__(
        self,
        paths: Paths,
        progress: Progress,
        history: Iterable[Event] = (),
        yardstick: Yardstick | None = None,
        unit: str = "tokens",
    ) -> None:
        """`yardstick` is None where the peak of the devices is not known; `unit` is what batches are counted in."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 seconds of import that only the lead needs

        self._events = EventLog(paths.logs / "events.jsonl", history)
        self._progress, self._yardstick, self._unit = progress, yardstick, unit
        self._board = SummaryWriter(str(paths.logs / "tensorboard"))
        self._unlogged = Work()

    @property
    def history(self) -> list[Event]:
        return self._events.history

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the run has found out about itself so far."""
        return tuple(findings(self._progress.known()))

    def stage(self, stage: str, **facts: Any) -> None:
        self._progress.update(stage=stage, **facts)

    def event(self, event: str, **fields: Any) -> None:
        self._events.emit(event, **fields)

    def own(self, event: str, **fields: Any) -> None:
        """An event of this rank alone.  Every rank reports it, the lead rank or not."""
        self._events.emit(event, **fields)

    def step(self, result: StepResult, size: int, seconds: float) -> None:
        """A step that took `seconds`, over `size` tokens or images of all ranks, padding left out."""
        self._progress.count(self._unit, size)
        self._progress.update(
            stage="training", step=result.step, maxSteps=result.max_steps, epoch=round(result.epoch, 3)
        )
        self._unlogged.add(result.rows, size, seconds)
        if result.loss is not None:
            self._log_step(result)

    def evaluation(self, step: int, epoch: float, result: "EvalResult") -> None:
        """A validation loss, with the last training loss beside it."""
        last = self._events.last("step")
        train_loss = last["loss"] if last else None
        self._events.emit(
            "evaluation",
            epoch=round(epoch, 3),
            trainLoss=train_loss,
            loss=result.loss,
            step=step,
            **result.figures,
            gap=None if train_loss is None else result.loss - train_loss,
        )
        self._board.add_scalar("loss/validation", result.loss, step)
        for name, value in result.figures.items():
            if value is not None:
                self._board.add_scalar(f"{name}/validation", value, step)
        self._progress.update(evalLoss=result.loss)

    def records(self, counts: RecordCounts) -> None:
        """What became of the records that were prepared; an event where not all were used as they are."""
        self._progress.update(records=counts.model_dump(by_alias=True, exclude_none=True))
        for finding in self.findings:
            self._find(finding)

    def stopped_early(self, step: int, max_steps: int, evaluations: int) -> None:
        """The run ends here, because the validation loss has not fallen for so many evaluations."""
        self._progress.update(step=step, maxSteps=max_steps, staleEvaluations=evaluations)
        self._find(early_stop(step, max_steps, evaluations), step=step, evaluations=evaluations)

    def improvement(self, before: float | None, after: float | None) -> None:
        """The held-out losses of the model before training and of the result."""
        self._progress.update(initialEvalLoss=before, finalEvalLoss=after)
        self._find(improvement(before, after))

    def _find(self, finding: Finding, **facts: Any) -> None:
        """An event for a finding that people should hear of, unless the last run of the job has told the same."""
        kind, entry = NOTABLE[finding.type], {"message": finding.message, "reason": finding.reason, **facts}
        last = self._events.last(kind)
        if finding.is_notable and (last is None or last["message"] != finding.message):
            self._events.emit(kind, **entry)

    def checkpoint(self, saved: "Saved") -> None:
        info = saved.info
        facts = {
            "step": info.step,
            "time": info.created,
            "sizeBytes": info.size_bytes,
            "sealed": info.sealed,
            "keyId": info.key_id,
            "manifestDigest": info.manifest_digest,
            "seconds": round(saved.seconds, 3),
            "stallSeconds": round(saved.stall_seconds, 3),
        }
        self._events.emit(
            "checkpoint",
            step=info.step,
            sizeBytes=info.size_bytes,
            seconds=facts["seconds"],
            stallSeconds=facts["stallSeconds"],
            sealed=info.sealed,
        )
        self._progress.update(lastCheckpoint={key: value for key, value in facts.items() if value is not None})
        for name in ("seconds", "stallSeconds"):
            self._board.add_scalar(f"{snake(name)}/checkpoint", facts[name], info.step)
        self._board.flush()  # the curves up to a checkpoint should outlive a crash, as the checkpoint does

    def close(self) -> None:
        self._board.close()

    def _log_step(self, result: StepResult) -> None:
        work, self._unlogged = self._unlogged, Work()
        facts: dict[str, float] = {
            "learningRate": result.learning_rate,
            "gradNorm": result.grad_norm,
            **work.speed(self._unit, self._yardstick),
            **(work.of_ranks(result.ranks) if result.ranks else {}),
        }
        self._events.emit("step", epoch=round(result.epoch, 3), step=result.step, loss=result.loss, **facts)
        for name, value in {"loss": result.loss, **facts}.items():
            self._board.add_scalar(f"{snake(name)}/train", value, result.step)
        eta_s = round((result.max_steps - result.step) * work.seconds / work.steps)
        self._progress.update(loss=result.loss, etaSeconds=eta_s, **facts)


class Silent(Reporter):
    """For every rank but the lead: reports the events of this rank alone, as log lines, and nothing else."""

    def __init__(self) -> None:
        self._history: list[Event] = []

    @property
    def history(self) -> list[Event]:
        return self._history

    def stage(self, stage: str, **facts: Any) -> None: ...
    def event(self, event: str, **fields: Any) -> None: ...
    def own(self, event: str, **fields: Any) -> None:
        log(log_line({"event": event, **fields}))

    def step(self, result: StepResult, size: int, seconds: float) -> None: ...
    def evaluation(self, step: int, epoch: float, result: "EvalResult") -> None: ...
    def records(self, counts: RecordCounts) -> None: ...
    def stopped_early(self, step: int, max_steps: int, evaluations: int) -> None: ...
    def improvement(self, before: float | None, after: float | None) -> None: ...
    def checkpoint(self, saved: "Saved") -> None: ...
    def close(self) -> None: ...
