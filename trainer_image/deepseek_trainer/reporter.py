"""Tells the run's story in every form that somebody reads: events, log lines, TensorBoard, /progress, /metrics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepseek_trainer.contract.names import Paths
from deepseek_trainer.events import Event, EventLog
from deepseek_trainer.progress import Progress

if TYPE_CHECKING:
    from deepseek_trainer.evaluate import EvalResult
    from deepseek_trainer.saver import Saved


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step, over all ranks."""

    step: int  # 1 after the first
    max_steps: int
    epoch: float
    loss: float | None  # mean over the learned tokens, before the update [nats/token]; None where it is not logged
    grad_norm: float  # before clipping
    learning_rate: float


@dataclass(slots=True)
class Work:
    """What was done since the last log line."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.steps, self.tokens, self.seconds = self.steps + 1, self.tokens + tokens, self.seconds + seconds


class Reporter:
    """The voice of the lead rank; the other ranks have a `Silent` one."""

    def __init__(self, paths: Paths, progress: Progress, history: Iterable[Event] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 seconds of import that only the lead needs

        self._events = EventLog(paths.logs / "events.jsonl", history)
        self._progress = progress
        self._board = SummaryWriter(str(paths.logs / "tensorboard"))
        self._unlogged = Work()

    @property
    def history(self) -> list[Event]:
        return self._events.history

    def stage(self, stage: str, **facts: Any) -> None:
        self._progress.update(stage=stage, **facts)

    def event(self, event: str, **fields: Any) -> None:
        self._events.emit(event, **fields)

    def step(self, result: StepResult, tokens: int, seconds: float) -> None:
        """A step over `tokens` tokens of all ranks, padding left out, that took `seconds`."""
        self._progress.count_tokens(tokens)
        self._progress.update(
            stage="training", step=result.step, maxSteps=result.max_steps, epoch=round(result.epoch, 3)
        )
        self._unlogged.add(tokens, seconds)
        if result.loss is not None:
            self._log_step(result)

    def evaluation(self, step: int, epoch: float, result: "EvalResult") -> None:
        """A validation loss, beside the last training loss."""
        last = self._events.last("step")
        train_loss = last["loss"] if last else None
        self._events.emit(
            "evaluation",
            epoch=round(epoch, 3),
            trainLoss=train_loss,
            loss=result.loss,
            step=step,
            perplexity=result.perplexity,
            bitsPerByte=result.bits_per_byte,
            gap=None if train_loss is None else result.loss - train_loss,
        )
        self._board.add_scalar("loss/validation", result.loss, step)
        self._progress.update(evalLoss=result.loss)

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
        self._board.flush()  # what led to a checkpoint should outlive a crash as the checkpoint does

    def close(self) -> None:
        self._board.close()

    def _log_step(self, result: StepResult) -> None:
        work, self._unlogged = self._unlogged, Work()
        rate = work.tokens / work.seconds
        self._events.emit(
            "step",
            epoch=round(result.epoch, 3),
            step=result.step,
            loss=result.loss,
            learningRate=result.learning_rate,
            gradNorm=result.grad_norm,
            tokensPerSecond=round(rate, 1),
        )
        for name in ("loss", "grad_norm", "learning_rate"):
            self._board.add_scalar(f"{name}/train", getattr(result, name), result.step)
        self._board.add_scalar("tokens_per_second/train", rate, result.step)
        self._progress.update(
            loss=result.loss,
            learningRate=result.learning_rate,
            gradNorm=result.grad_norm,
            tokensPerSecond=round(rate, 1),
            etaSeconds=round((result.max_steps - result.step) * work.seconds / work.steps),
        )


class Silent(Reporter):
    """Says nothing: for every rank but the lead."""

    def __init__(self) -> None:
        self._history: list[Event] = []

    @property
    def history(self) -> list[Event]:
        return self._history

    def stage(self, stage: str, **facts: Any) -> None: ...
    def event(self, event: str, **fields: Any) -> None: ...
    def step(self, result: StepResult, tokens: int, seconds: float) -> None: ...
    def evaluation(self, step: int, epoch: float, result: "EvalResult") -> None: ...
    def checkpoint(self, saved: "Saved") -> None: ...
    def close(self) -> None: ...
