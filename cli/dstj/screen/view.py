"""Picks from a job's object what a person wants to see, without what would move a terminal's cursor."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from deepseek_trainer.contract.findings import FindingType, is_notable
from deepseek_trainer.contract.foreign import one_line
from dstj.local.kubelet import Manifest

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class View:
    """The facts of a job at one moment.  None stands for what is not known yet."""

    name: str
    phase: str
    message: str
    attempt: int
    restarts: str
    stage: str
    step: int | None
    max_steps: int | None
    metrics: dict[str, str]
    eta: str | None
    checkpoint: str | None
    notices: tuple[str, ...]  # what the run found out about itself that a person should hear of

    @property
    def progress(self) -> str:
        """`step 40/120, loss 2.31, eval loss 2.40, 210 tokens/s, 1:20 left`; empty before the first step."""
        if self.step is None:
            return ""
        parts = [f"step {self.step}/{self.max_steps}", *(f"{name} {value}" for name, value in self._shown())]
        return ", ".join([*parts, *([f"{self.eta} left"] if self.eta else [])])

    def _shown(self) -> Iterator[tuple[str, str]]:
        for key, label in (("loss", "loss"), ("eval_loss", "eval loss"), ("tokens_per_second", "tokens/s")):
            if key in self.metrics:
                yield label, self.metrics[key]


def view(manifest: Manifest) -> View:
    status = manifest.get("status") or {}
    trainer = status.get("trainerStatus") or {}
    remaining = trainer.get("estimatedRemainingSeconds")
    return View(
        name=one_line(manifest["metadata"]["name"]),
        phase=one_line(status.get("phase") or "Pending"),
        message=one_line(status.get("message") or ""),
        attempt=status.get("attempt") or 0,
        restarts=restarts(status.get("restarts") or {}),
        stage=one_line(trainer.get("stage") or ""),
        step=trainer.get("step"),
        max_steps=trainer.get("maxSteps"),
        metrics={metric["name"]: one_line(metric["value"]) for metric in trainer.get("metrics") or ()},
        eta=str(timedelta(seconds=remaining)) if remaining is not None else None,
        checkpoint=checkpoint(status.get("lastCheckpoint")),
        notices=tuple(notices(status)),
    )


def notices(status: dict[str, Any]) -> Iterator[str]:
    """The notable findings of a run, unless the message of its status tells them already."""
    found = {condition.get("type"): condition for condition in status.get("conditions") or ()}
    for type_ in FindingType:
        condition = found.get(type_) or {}
        text = one_line(condition.get("message") or "")
        if is_notable(type_, condition.get("status", "")) and text not in (status.get("message") or ""):
            yield text


def restarts(counts: dict[str, Any]) -> str:
    """`1 in place, 2 attempts`, or 0."""
    names = {"inPlace": "in place", "job": "after failures", "disruption": "after disruptions"}
    return ", ".join(f"{counts[key]} {label}" for key, label in names.items() if counts.get(key)) or "0"


def checkpoint(last: dict[str, Any] | None) -> str | None:
    """`step 40 (12.5 MiB, sealed)`."""
    if not last:
        return None
    facts = [f"{last['sizeBytes'] / MIB:.1f} MiB"] if last.get("sizeBytes") is not None else []
    facts.append("sealed" if last.get("sealed") else "in the clear")
    return f"step {last['step']} ({', '.join(facts)})"
