"""Prints how a job ended: the result and how good it is, or what failed and where the log is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from deepseek_trainer.contract.errors import JobError
from deepseek_trainer.contract.foreign import count, json_object, number
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.storage.opening import content_of
from dstj.local.home import JobHome
from dstj.local.kubelet import Manifest
from dstj.screen.view import checkpoint, notices, restarts

MAX_EVENTS: Final = 256 << 20  # [bytes]
OWN_CODES: Final = frozenset(ExitCode) - {ExitCode.DONE, ExitCode.USAGE, ExitCode.STOPPED}


class RunFailedError(JobError):
    """The job failed.  Its code is the exit code of the rank that failed first."""

    def __init__(self, problem: str, *, hint: str, code: ExitCode) -> None:
        super().__init__(problem, hint=hint)
        self.code = code


def is_finished(manifest: Manifest) -> bool:
    return manifest["status"].get("phase") in ("Succeeded", "Failed")


def print_outcome(manifest: Manifest, home: JobHome, *, hint: str = "") -> int:
    """Print the outcome of a job.  Raises RunFailedError if it failed."""
    if manifest["status"].get("phase") == "Failed":
        raise failure(manifest, home, hint)
    for line in summary(manifest, home):
        say(line)
    if hint:
        say(hint)
    return ExitCode.DONE


def failure(manifest: Manifest, home: JobHome, hint: str) -> RunFailedError:
    """The error of a failed job: one line with rank, node and reason, and a hint with the place of the whole log."""
    status = manifest["status"]
    last = status.get("lastFailure") or {}
    code = last.get("exitCode")
    known = ExitCode(code) if code in OWN_CODES else ExitCode.TRY_AGAIN if code else ExitCode.INTERNAL
    hints = []
    if "podName" in last:
        hints.append(f"whole log: {home.logs / last['podName']}/")
    hints.append(hint or "correct the cause and run it again with --recreate")
    return RunFailedError(f"{manifest['metadata']['name']}: {status.get('message')}", hint="; ".join(hints), code=known)


def summary(manifest: Manifest, home: JobHome) -> Iterator[str]:
    """Lines with what a person asks first about a job that has stopped."""
    status = manifest["status"]
    yield f"{manifest['metadata']['name']}: {status.get('phase')}: {status.get('message')}"
    yield from (f"  notice        {text}" for text in notices(status))
    if status.get("phase") == "Succeeded":
        yield f"  result        {home.paths.export / manifest['metadata']['name']}"
    yield from (f"  {name:<13} {text}" for name, text in _measures(home.paths.logs / "events.jsonl"))
    if last := checkpoint(status.get("lastCheckpoint")):
        yield f"  checkpoint    {last}, in {home.paths.checkpoints}"
    yield f"  attempts      {status.get('attempt', 0)}, restarts: {restarts(status.get('restarts') or {})}"


def _measures(events: Path) -> Iterator[tuple[str, str]]:
    """Measures before and after the training, from the trainer's event log."""
    story = _story(events)
    if losses := [number(event.get("loss")) for event in story if event["event"] in ("evaluation", "result")]:
        yield "held-out loss", f"{_loss(losses[0])} before, {_loss(losses[-1])} after"
    if answers := [event for event in story if event["event"] == "answers"]:
        yield "right answers", f"{_right(answers[0])} before, {_right(answers[-1])} after"
    if chosen := [number(event.get("accuracy")) or 0.0 for event in story if event["event"] == "classification"]:
        yield "right labels", f"{chosen[0]:.1%} before, {chosen[-1]:.1%} after"


def _story(events: Path) -> list[dict[str, Any]]:
    """What the trainer wrote; nothing where that is not to be read: the volume is the job's, and others write there."""
    try:
        lines = content_of(events, max_bytes=MAX_EVENTS).decode(errors="replace").splitlines()
    except (OSError, JobError):
        return []
    return [event for line in lines if line.endswith("}") and (event := json_object(line)) and "event" in event]


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _right(event: dict[str, Any]) -> str:
    return f"{count(event.get('right'))} of {count(event.get('asked'))}"
