"""The run report: one HTML file that needs nothing else.  Pure."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median_low
from typing import Any, Final

from deepseek_trainer.result.chart import Point, line_chart
from deepseek_trainer.tasks.task import Answer

Event = Mapping[str, Any]

SMALL_GAP: Final = 0.05  # [nats/token] of validation loss above training loss: below, little is learned by heart

# Field of a step's event -> what it is.
SPEED: Final = {
    "tokensPerSecond": "tokens/s, padding left out",
    "imagesPerSecond": "images/s",
    "samplesPerSecond": "rows/s",
    "mfu": "MFU: share of the GPUs' peak that the model needs, by PaLM's count",
    "hfu": "HFU: the same with padding, and with what recompute Full does again",
    "dataWaitShare": "share of the time that the rank that waited longest waited for data",
    "rankSkew": "time of the slowest rank before it waits for others, over the median rank's",
    "peakMemoryBytes": "peak memory of the largest rank [bytes]",
}

# Kind of event, the heading of its table, its columns.
EVENT_TABLES: Final = (
    ("resumed", "Restarts", ("time", "step", "attempt", "savedBy")),
    (
        "adapted",
        "Adapted to the memory",
        (
            *("time", "step", "rung", "microBatchSize", "recompute", "logitsMebibytes", "strategy", "offload"),
            *("optimizer", "reason", "result"),
        ),
    ),
    ("config_changed", "Settings changed since the checkpoint", ("time", "step", "settings")),
    ("checkpoint", "Checkpoints", ("time", "step", "sizeBytes", "seconds", "stallSeconds", "sealed")),
    ("refused", "Checkpoints refused", ("time", "step", "reason")),
)

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2937;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #e5e7eb}
td{white-space:pre-wrap;overflow-wrap:anywhere}
th{font-weight:600;background:#f9fafb}
svg{width:100%;height:auto;margin:.5rem 0}
svg text{font-size:11px}svg .title{font-size:13px;fill:#1f2937}svg .x,svg .y{fill:#6b7280}
svg .y,svg .legend{text-anchor:end}svg .x{text-anchor:middle}svg .legend{font-weight:600}
polyline{fill:none;stroke-width:1.6}.grid{stroke:#e5e7eb}.mark{stroke:#dc2626;stroke-dasharray:4 3}
"""


@dataclass(frozen=True, slots=True)
class Report:
    """All that the report shows."""

    title: str
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    before: Mapping[str, Any]  # evaluation of the untrained model, by name of the measure
    after: Mapping[str, Any]
    events: Sequence[Event]
    answers: Sequence[Answer]
    loss_unit: str = "token"  # of which a loss is the mean
    data: Mapping[str, Any] = field(default_factory=dict)  # counts and name of the prepared data


def render(report: Report) -> str:
    """A complete HTML document without scripts or references to other files."""
    body = [
        f"<h1>{_text(report.title)}</h1>",
        _table(("", ""), report.summary.items()),
        _charts(report.events, report.loss_unit),
        _speed(report.events),
        _evaluation(report),
        _classification(report.after),
        _answers(report.answers),
        *(_events(report.events, *each) for each in EVENT_TABLES),
        _section("Data", _table(("Fact", "Value"), list(report.data.items())) if report.data else ""),
        _section("Settings", _table(("Setting", "Value"), report.settings.items())),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{_text(report.title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n"
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            value = {str(i): item for i, item in enumerate(value)}  # noqa: PLW2901
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(measure, before, after) for each number that either has."""
    old, new = _numbers(before), _numbers(after)
    return [(name, _short(old.get(name)), _short(new.get(name))) for name in {**old, **new}]


def bleu_note(scores: Mapping[str, Any]) -> str:
    """How BLEU was made; "" if there is none."""
    signature = scores.get("bleuSignature")
    return f"BLEU is the corpus score of sacrebleu, {signature}, divided by 100." if signature else ""


def confusion_table(scores: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Head and rows: for each right label, how often each was chosen, and how good that is.  Empty if there is none."""
    found = scores.get("classification")
    if not found:
        return [], []
    measures = ("precision", "recall", "f1")
    rows = [
        [label, *counts, *(_short(per_class[name]) for name in measures)]
        for label, counts, per_class in zip(found["labels"], found["confusion"], found["perClass"], strict=True)
    ]
    return ["right / chosen", *found["labels"], *measures], rows


def _numbers(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(scores).items() if not isinstance(value, str | list)}


def _charts(events: Sequence[Event], loss_unit: str) -> str:
    restarts = [event["step"] for event in _named(events, "resumed")]
    charts = (
        (
            f"Loss [nats/{loss_unit}]",
            {"train": ("step", "loss"), "validation": ("evaluation", "loss")},
        ),
        ("Held-out images of which the class was chosen", {"accuracy": ("evaluation", "accuracy")}),
        ("Held-out pairs with the chosen answer preferred", {"reward accuracy": ("evaluation", "rewardAccuracy")}),
        ("Reward of chosen over rejected answers [nats]", {"reward margin": ("evaluation", "rewardMargin")}),
        ("Learning rate", {"learning rate": ("step", "learningRate")}),
        ("Gradient norm before clipping", {"gradient norm": ("step", "gradNorm")}),
        ("Throughput [tokens/s, padding left out]", {"tokens/s": ("step", "tokensPerSecond")}),
        ("Throughput [images/s]", {"images/s": ("step", "imagesPerSecond")}),
        ("Share of the GPUs' peak", {"MFU": ("step", "mfu"), "HFU": ("step", "hfu")}),
    )
    drawn = [
        line_chart(title, {name: _points(events, *source) for name, source in series.items()}, restarts)
        for title, series in charts
    ]
    return _section("Course", "".join(drawn))


def _speed(events: Sequence[Event]) -> str:
    steps = _named(events, "step")
    speeds = [(title, [event[name] for event in steps if name in event]) for name, title in SPEED.items()]
    rows = [(title, median_low(values), max(values)) for title, values in speeds if values]
    return _section("Speed and memory", _table(("Of the logged steps", "Median", "Largest"), rows) if rows else "")


def _points(events: Sequence[Event], kind: str, field: str) -> list[Point]:
    return [(event["step"], event[field]) for event in _named(events, kind) if event.get(field) is not None]


def _evaluation(report: Report) -> str:
    rows = comparison(report.before, report.after)
    table = _table(("Measure", "Before", "After"), rows) if rows else ""
    notes = (bleu_note(report.after), _gap(report.events))
    return _section("Evaluation", table + "".join(f"<p>{_text(note)}</p>" for note in notes if note))


def _gap(events: Sequence[Event]) -> str:
    """The overfitting gap of the weights that are the result; "" if it is not known."""
    steps = [event.get("step") for event in _named(events, "result")[-1:]]
    found = [event.get("gap") for event in _named(events, "evaluation") if event["step"] in steps]
    if not (gaps := [gap for gap in found if gap is not None]):
        return ""
    verdict = "under" if gaps[-1] < SMALL_GAP else "not under"
    return f"Validation loss minus training loss at step {steps[0]}: {_short(gaps[-1])}, {verdict} {SMALL_GAP}."


def _classification(scores: Mapping[str, Any]) -> str:
    head, rows = confusion_table(scores)
    return _section("Labels chosen for held-out prompts, after training", _table(head, rows) if rows else "")


def _answers(answers: Sequence[Answer]) -> str:
    rows = [(answer.prompt, answer.reference, answer.before, answer.after) for answer in answers]
    return _section(
        "Answers to held-out prompts", _table(("Prompt", "Reference", "Before", "After"), rows) if rows else ""
    )


def _events(events: Sequence[Event], kind: str, title: str, fields: Sequence[str]) -> str:
    rows = [[_cell(name, event.get(name)) for name in fields] for event in _named(events, kind)]
    return _section(title, _table(fields, rows) if rows else "")


def _named(events: Sequence[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def _section(title: str, content: str) -> str:
    return f"<h2>{_text(title)}</h2>{content}" if content else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    top = [f"<th>{_text(name)}</th>" for name in head if name]
    body = [[f"<td>{_text(_short(value))}</td>" for value in row] for row in rows]
    return "<table>" + "".join(f"<tr>{''.join(cells)}</tr>" for cells in (top, *body) if cells) + "</table>"


def _cell(name: str, value: Any) -> Any:
    if name == "time" and value is not None:
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return value


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _text(text: str) -> str:
    return html.escape(text)
