"""The events of a run: a JSON line each for programs, a log line each for people.

Events hold numbers and names, never a sample of the data.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deepseek_trainer.contract.documents import finite, json_text
from deepseek_trainer.contract.lines import say
from deepseek_trainer.storage.opening import opened_to_append

Event = dict[str, Any]


class EventLog:
    """The events of the lead rank.  Checkpoints keep them, so that the report of a restarted run is complete."""

    def __init__(self, path: Path, history: Iterable[Event] = ()) -> None:
        self.history: list[Event] = list(history)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = opened_to_append(path)

    def emit(self, event: str, **fields: Any) -> None:
        entry = {"event": event, "time": round(time.time(), 3), **fields}
        self.history.append({name: finite(value) for name, value in entry.items()})
        self._file.write(json_text(self.history[-1]) + "\n")
        log(log_line(entry))

    def last(self, event: str) -> Event | None:
        return next((e for e in reversed(self.history) if e["event"] == event), None)


def log(text: str) -> None:
    """`[2026-01-31 12:00:00] INFO: text` on stdout."""
    say(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] INFO: {text}", flush=True)


LOSS_NAMES = {"step": "train_loss", "evaluation": "val_loss"}


def log_line(entry: Event) -> str:
    """`epoch=12, train_loss=0.82, val_loss=0.85` for steps and evaluations, `event: key=value` for other events.

    Nested values are for programs and left out.
    """
    kind = entry["event"]
    names = {"loss": LOSS_NAMES.get(kind, "loss")}
    fields = {names.get(key) or snake(key): value for key, value in entry.items() if key not in ("event", "time")}
    text = ", ".join(
        f"{key}={_short(value)}" for key, value in fields.items() if value is not None and not isinstance(value, dict)
    )
    return text if kind in LOSS_NAMES else f"{kind}: {text}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def snake(name: str) -> str:
    """`snake_case` of `camelCase`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
